"""The MPI mechanics: rank 0 over its slots, the slots, and what they say to each other."""
