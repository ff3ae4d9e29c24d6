"""AiiDA's own graph of (x + y) · z, and what its cache does with sibling plugins, as one JSON document.

Run by the Python of an environment that has aiida-core; everything is kept in a folder that is given. See
`tests/test_aiida.py`.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

os.environ["AIIDA_PATH"] = sys.argv[1]  # read when aiida is imported
warnings.simplefilter("ignore")

import aiida  # noqa: E402
from aiida import orm  # noqa: E402
from aiida.calculations.arithmetic.add import ArithmeticAddCalculation  # noqa: E402
from aiida.engine import run_get_node  # noqa: E402
from aiida.manage.caching import enable_caching  # noqa: E402
from aiida.storage.sqlite_temp import SqliteTempBackend  # noqa: E402
from aiida.workflows.arithmetic.add_multiply import add_multiply  # noqa: E402


class Sum(ArithmeticAddCalculation):
    """A plugin: its program adds."""


class Product(ArithmeticAddCalculation):
    """Its sibling, with the same inputs: its program multiplies."""

    def prepare_for_submission(self, folder: Any) -> Any:
        """Write another script."""
        info = super().prepare_for_submission(folder)
        with folder.open(self.options.input_filename, "w", encoding="utf8") as script:
            script.write(f"echo $(({self.inputs.x.value} * {self.inputs.y.value}))\n")
        return info


def graph(x: int, y: int, z: int) -> dict[str, Any]:
    """Compute it with the workfunction of the tutorial and return every node that there is then, and every link."""
    add_multiply(orm.Int(x), orm.Int(y), orm.Int(z))
    nodes: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    for node in orm.QueryBuilder().append(orm.Node).all(flat=True):
        process = isinstance(node, orm.ProcessNode)
        what = {"name": node.process_label} if process else {"value": node.value}
        nodes.append({"id": node.pk, "type": type(node).__name__, **what})
        for link in node.base.links.get_incoming().all():
            ends = {"source": link.node.pk, "target": node.pk}
            links.append({"type": link.link_type.name, "label": link.link_label, **ends})
    return {"nodes": nodes, "links": links}


def siblings(x: int, y: int) -> dict[str, Any]:
    """Run two plugins that differ in what they do, with equal inputs and the cache on."""
    here = orm.Computer(
        "here", "localhost", transport_type="core.local", scheduler_type="core.direct", workdir=f"{sys.argv[1]}/work"
    ).store()
    here.configure(safe_interval=0.0)
    here.set_minimum_job_poll_interval(0.0)
    here.set_default_mpiprocs_per_machine(1)
    code = orm.InstalledCode(computer=here, filepath_executable="/bin/bash", label="bash").store()
    found = {}
    with enable_caching():
        for plugin in (Sum, Product):
            results, node = run_get_node(plugin, code=code, x=orm.Int(x), y=orm.Int(y))
            found[plugin.__name__] = {
                "result": results["sum"].value,
                "hash": node.base.caching.compute_hash(),
                "cached": node.base.caching.is_created_from_cache,
            }
    return found


aiida.load_profile(SqliteTempBackend.create_profile(), allow_switch=True)  # needs no service, and leaves nothing
print(json.dumps({"version": aiida.__version__, "graph": graph(2, 3, 4), "siblings": siblings(3, 4)}))
