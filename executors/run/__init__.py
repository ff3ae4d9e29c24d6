"""How one task runs: a warm child process per slot, and the rank's handle on it.

The rank's side, outside in: `handle` (the queue, what the slot's loop sees), `keeper` (one child alive and
at work), `process` (one spawned child: its channels, its death), `restart` (when to signal, when to start),
`verdict` (results written by the rank because the child could not), `output` (captured output), `orphans`.

Between the two: `frames` (packets), `wire` (work and results as bytes), `position` (how far the output of a
task reaches), `scrub` (the environment).

The child's side: `child` (its loop), `function` and `command` (one task of each kind), `exchange` (values in
and out), `guard` (what is put back between tasks), `meter` (cost and memory limit), `failure` (exceptions as
text). These import little: it is what user code finds loaded.
"""
