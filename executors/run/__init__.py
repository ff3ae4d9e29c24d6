"""How one task runs: a warm child process per slot, and the rank's handle on it.

Read in this order: `handle` (the rank's side: queue, deadlines, restarts), `process` (one spawned child
as the rank holds it), `frames` (what travels between the two), `child` (the child's own loop), `function`
and `command` (one task of each kind), `guard` (what a child puts back between tasks), `meter` (what a task
costs), `output` and `position` (captured output), `scrub` (environment), `orphans` (sweeping up).
"""
