"""Write what follows from the site files and their schema: ``python docs/generate.py``.

These are ``docs/site.schema.json``, a page for each site, and the batch scripts in ``tests/golden/scripts``, in which a
change of what is submitted shows. `tests/test_generated.py` fails when they are not what this would write.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pilot.allocation import batch_script, pilot_settings, request_of
from pilot.cli.text import span
from pilot.config import ProjectConfig
from pilot.site_files import SHIPPED, load_site, site_names
from pilot.sites import Node, Queue, Site

ROOT = Path(__file__).parent.parent
SCHEMA, PAGES, SCRIPTS = (
    ROOT / "docs" / "site.schema.json",
    ROOT / "docs" / "sites",
    ROOT / "tests" / "golden" / "scripts",
)

ACCOUNT = "ACCOUNT"
WALLTIME_S = 3600.0
PROJECT = ProjectConfig(Path("/project"), "id", "project", embedded=True)
PILOT = "p1a2b3c4d5e"
AGENT = ["/environment/bin/python", "-P", "-m", "pilot.agent", f"/project/.pilot/pilots/{PILOT}/settings.json"]


def generated() -> dict[Path, str]:
    """Return what each file should say."""
    sites = {name: load_site(str(SHIPPED / f"{name}.yaml")) for name in site_names()}
    batch = [site for site in sites.values() if site.batch]
    return {
        SCHEMA: json.dumps(schema(), indent=1) + "\n",
        PAGES / "index.md": index(list(sites.values())),
        **{PAGES / f"{name}.md": page(site) for name, site in sites.items()},
        **{SCRIPTS / f"{site.name}.sh": script(site) for site in batch},
    }


def stale() -> list[Path]:
    """Return files that are there and should not be: of sites that are gone."""
    return sorted({*PAGES.glob("*"), *SCRIPTS.glob("*")} - generated().keys())


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a site file; what is required may stand in a file that it extends."""
    found = Site.model_json_schema()
    extends = {"type": "string", "description": "another site, whose file is taken for what this one does not say"}
    found["properties"] = {"extends": extends, **found["properties"]}
    for part in (found, *found["$defs"].values()):
        part.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


# -- pages ----------------------------------------------------------------------------------------


def index(sites: list[Site]) -> str:
    """Return the page that lists all sites."""
    rows = [
        f"| [{site.name}]({site.name}.md) | {site.description} | {site.batch.system if site.batch else ''} "
        f"| {site.verified.date if site.verified else ''} |"
        for site in sites
    ]
    return "\n".join([
        "# Sites", "",
        "Machines that `--site` knows, each by a [file](../concepts/site.md) in `site-configs/`. The date is that of",
        "what the file was made from; what nobody has made sure of stands on each page.", "",
        "| site | what it is | batch system | as of |", "|---|---|---|---|", *rows, "",
    ])  # fmt: skip


def page(site: Site) -> str:
    """Return a site's page."""
    lines = [
        f"# {site.name}", "", f"{site.description}.", "",
        f"[Site file](../../site-configs/{site.name}.yaml), [the site's documentation]({site.documentation}); contact: "
        f"{site.contact}.", "",
    ]  # fmt: skip
    if site.verified:
        lines += [f"As of {site.verified.date}, from {site.verified.source}.", ""]
    if site.unverified:
        lines += [f"Nobody has made sure of {', '.join(f'`{key}`' for key in site.unverified)}.", ""]
    lines += ["```sh", command(site), "```", ""]
    if site.batch and site.batch.queues:
        queues = site.batch.queues.items()
        lines += ["| queue | nodes | walltime | jobs |", "|---|---|---|---|", *(row(*queue) for queue in queues), ""]
        lines += [f"Without `--queue`: `{site.batch.queue}`.", ""] if site.batch.queue else []
    lines += [f"A node, as far as tasks may use it: {node(site.node)}.", ""]
    if site.batch:
        lines += ["What is submitted:", "", "```text", script(site).rstrip(), "```", ""]
    return "\n".join(lines)


def command(site: Site) -> str:
    """Return how a pilot is asked for."""
    if not site.batch:
        return f"pilot up --site {site.name}"
    account = f" --account {ACCOUNT}" if site.batch.account_required else ""
    return f"pilot up --site {site.name} --nodes {nodes_of(site)} --walltime {round(WALLTIME_S / 3600)}h{account}"


def row(name: str, queue: Queue) -> str:
    """Return a queue's line of the table."""
    nodes = f"{queue.min_nodes}–{queue.max_nodes:,}" if queue.max_nodes else f"{queue.min_nodes}–"
    walltime = "; ".join(f"{span(size.max_walltime)} up to {size.max_nodes:,} nodes" for size in queue.sizes)
    if queue.max_walltime:
        walltime = f"{walltime}; {span(queue.max_walltime)}" if walltime else span(queue.max_walltime)
    if queue.min_walltime:
        walltime = f"{walltime}, at least {span(queue.min_walltime)}"
    jobs = [f"{queue.max_queued:,}"] if queue.max_queued else []
    jobs += [f"{queue.max_running:,} running"] if queue.max_running else []
    nodes = nodes if queue.max_nodes or queue.min_nodes > 1 else ""
    return f"| `{name}` | {nodes} | {walltime} | {', '.join(jobs)} |"


def node(has: Node) -> str:
    """Return what a node has, in words."""
    parts = [f"{has.cores} cores"] if has.cores else ["all cores"]
    if has.memory_bytes:
        parts.append(f"{has.memory_bytes / (1 << 30):,.0f} GiB")
    if has.gpus:
        parts.append(f"{has.gpus} GPUs (`{has.gpu_variable}`)")
    return ", ".join(parts)


# -- scripts --------------------------------------------------------------------------------------


def nodes_of(site: Site) -> int:
    """Return how many nodes the example asks for."""
    assert site.batch is not None
    queue = site.batch.queues.get(site.batch.queue)
    return max(2, queue.min_nodes if queue else 0)


def script(site: Site) -> str:
    """Return the script of a pilot, the same on every machine."""
    assert site.batch is not None
    settings = pilot_settings(PROJECT, site, walltime_s=WALLTIME_S)
    settings = replace(settings, pilot=PILOT, nodes=nodes_of(site))
    return batch_script(site.batch, request_of(site, settings, account=ACCOUNT), AGENT)


def main() -> None:
    """Write all files, and remove those of sites that are gone."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in stale():
        path.unlink()


if __name__ == "__main__":
    main()
