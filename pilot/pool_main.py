"""Entry of a pool's MPI program and of its children: decides who it is before it imports either side.

``python -P -m pilot.pool_main CONFIG`` is one rank, started by the launcher: rank 0 is the coordinator, the
others are slots. ``python -P -m pilot.pool_main --child CONFIG RANK HOST`` is the child of a slot, ``--isolated CONFIG
FRAME FOLDER`` one rank of a program that runs a single MPI function.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def main(argv: list[str]) -> int:
    """Be what the arguments and the launcher say; return the exit code of a child, else do not return."""
    if argv[1] == "--child":
        return _child(argv[2], int(argv[3]), argv[4])
    if argv[1] == "--isolated":
        _isolated(*argv[2:5])
    config = _read(argv[1])
    from pilot.executors.pool.identity import rank_from_environment

    rank = rank_from_environment(os.environ)
    from pilot.executors.pool.world import guarded

    if rank is not None and rank > 0:
        guarded(lambda: _slot(argv[1], config, rank))
    guarded(lambda: _coordinator(config))


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    return config


def _child(path: str, rank: int, host: str) -> int:
    from pilot.executors.run.child import Place, inherit, serve
    from pilot.store.objects import Objects

    ends = inherit()
    config = _read(path)
    settings, launchers = config["settings"], config["settings"]["launchers"]
    if launchers:
        launchers["job"] = config["job"]
    root = str(settings["root"])
    isolated = (sys.executable, "-P", "-m", "pilot.pool_main", "--isolated", path)
    place = Place(rank, rank, host, root, f"{root}/.pilot/work", launchers, isolated)
    serve(ends, place, Objects(f"{root}/.pilot/objects"))
    return 0


def _isolated(path: str, frame: str, folder: str) -> NoReturn:
    from pilot.executors.pool.isolated import main
    from pilot.executors.pool.world import guarded
    from pilot.store.objects import Objects

    root = str(_read(path)["settings"]["root"])
    os.chdir(root)
    guarded(lambda: main(frame, folder, Objects(f"{root}/.pilot/objects")))


def _slot(path: str, config: dict[str, Any], rank: int) -> int:
    from pathlib import Path

    from pilot.executors.pool.inrank import Means
    from pilot.executors.pool.worker import run
    from pilot.executors.run.handle import Child
    from pilot.executors.run.output import Output, slot_file
    from pilot.executors.run.scrub import child_environment
    from pilot.store.objects import Objects

    settings = config["settings"]
    host = _host(config, rank)
    argv = [sys.executable, "-P", "-m", "pilot.pool_main", "--child", path, str(rank), host]
    env = child_environment(os.environ, config["launch"], settings["slot_cores"])
    root = settings["root"]
    file = slot_file(Path(root) / ".pilot" / "pilots" / settings["pilot"] / "output", host, rank)
    child = Child(argv, env, Output(file), rank, host)
    child.start()
    means = Means(Objects(f"{root}/.pilot/objects"), root, file.with_suffix(".mpi.out"))
    return run(child, config["slots"] + 1, host, means=means)


def _host(config: dict[str, Any], rank: int) -> str:
    """Return the name of this rank's node, which may be pretended to be one of several on this machine."""
    import socket

    from pilot.model import pretended_node

    name, nodes = socket.gethostname(), config["settings"]["pretend_nodes"]
    return name if nodes == 1 else pretended_node(name, (rank - 1) * nodes // config["slots"])


def _coordinator(config: dict[str, Any]) -> int:
    import gc
    import os
    from pathlib import Path

    from pilot import log, signing
    from pilot.config import load_project
    from pilot.coordinator import Coordinator
    from pilot.environment import capture
    from pilot.executors.pool.signals import Flags
    from pilot.executors.pool.slots import Slots
    from pilot.executors.pool.world import EXIT_LEFTOVER, start
    from pilot.executors.run.scrub import scrubbed
    from pilot.settings import PoolSettings
    from pilot.store import provenance
    from pilot.store.access import PILOT_SELECT_S, store_of
    from pilot.store.objects import Objects

    flags = Flags()
    flags.install()
    log.to_stderr()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # tens of thousands of live documents are no garbage: look for it rarely
    told = config["settings"]
    project = load_project(Path(told["root"]))
    settings = PoolSettings(
        root=project.root, pilot=told["pilot"], launch=config["launch"], site=told["site"], job=config["job"],
        control=Path(config["control"]), spool=project.spool_folder, slot_cores=told["slot_cores"],
        end_at=told["end_at"], beat_s=told["beat_s"], ttl_s=told["ttl_s"], drain_s=told["drain_s"],
        stop_s=told["stop_s"], gpus=tuple(told["gpus"]), cpu_order=tuple(told["cpu_order"]),
        steps_max=config["steps_max"], one_node_steps=told["one_node_steps"],
        programs_beside_pool=told["programs_beside_pool"], program_hosts=tuple(config["program_hosts"]),
    )  # fmt: skip
    world = start(config["slots"] + 1)
    signer = signing.signer_of(project)
    with store_of(project, start=False, select_s=PILOT_SELECT_S) as store:
        environment = capture(world.library, scrubbed(os.environ), told["site"], told["site_digest"])
        provenance.put_environment(store, environment)
        coordinator = Coordinator(store, Objects(project.objects_folder), signer, settings, environment["_id"], flags)
        slots = Slots(world.transport(), world.library, coordinator.preparer.functions.__getitem__)
        slots.wait_hello(120.0)
        code = coordinator.run(slots)
        slots.stop(30.0)
        if not slots.close():
            world.abort(EXIT_LEFTOVER, "a slot did not say goodbye")
    world.finish()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
