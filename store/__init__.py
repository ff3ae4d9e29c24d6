"""Everything that speaks to the database, and what is kept beside it: tasks, records, objects, the embedded server."""
