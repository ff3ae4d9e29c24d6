"""Records from one project into another by an archive: `pilot export --all`, `pilot import`, and both once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _harness import BenchmarkError, Settings, Workload, main
from _rig import await_idle, identity, project, ready

RESULTS = 20_000
"""Tasks that are submitted at once: nobody holds futures of all."""


def archive(settings: Settings) -> dict[str, Any]:
    """Run the tasks, half of them on the results of the others; then time the commands, from start to exit."""
    file = settings.folder / "all.pilot.zip"
    with ready(settings) as opened, project(settings, "other") as other:
        for start in range(0, settings.tasks // 2, RESULTS):
            parents = identity.map(range(start, min(start + RESULTS, settings.tasks // 2)))
            for future in identity.map(parents):
                future.result(60)
        await_idle(opened)
        export_s, export_mb, exported = command(opened.config.root, "export", "--all", "-o", str(file))
        import_s, import_mb, imported = command(other.root, "import", str(file))
        again_s, _, again = command(other.root, "import", str(file))
        records = exported["records"]
        if not settings.tasks <= records == imported["new"]["records"] == again["same"]["records"]:
            raise BenchmarkError(f"{records} records were exported, {imported} imported, then {again}")
        return {
            "seconds": export_s + import_s, "records": records, "export_per_s": records / export_s,
            "import_per_s": records / import_s, "again_per_s": records / again_s, "rss_mb_export": export_mb,
            "rss_mb_import": import_mb, "bytes_per_record": file.stat().st_size / records,
        }  # fmt: skip


def command(root: Path, *words: str) -> tuple[float, float, Any]:
    """Run a command of pilot in a project; return its seconds, the most memory it had in MB, and its JSON."""
    begun = time.perf_counter()
    argv = [sys.executable, "-m", "pilot", *words, "--json"]
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        text = running.stdout.read()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise BenchmarkError(f"`pilot {' '.join(words)}` ended with exit code {running.returncode}")
    return time.perf_counter() - begun, usage.ru_maxrss * 1024 / 1e6, json.loads(text)


if __name__ == "__main__":
    notes = "half of the tasks use a result of the others; whole commands, start of Python included"
    main("pilot", "hpc-pilot", {"archive": Workload(archive, 100_000, notes)})
