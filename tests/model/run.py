"""Search the protocol of the task life cycle and print what was found.

    python -m tests.model.run                       the whole protocol: states explored, no violation
    python -m tests.model.run --deep                the same with larger scenarios (minutes)
    python -m tests.model.run --drop pin_attempt    without one clause: the trace that breaks
    python -m tests.model.run --list                the clauses, and what each of them says

Exit code 0 if the whole protocol holds, or if the dropped clause turned out to be needed.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from tests.model import cancel, chain, dependants, lease_world, leases, upstream
from tests.model.search import Model, search


@dataclass(frozen=True)
class Family:
    """One model: its clauses, and the scenarios it is searched in."""

    clauses: type[Any]
    scenarios: tuple[str, ...]
    deep: tuple[str, ...]
    model: Callable[[str, Any], Model[Any]]

    def has(self, clause: str) -> bool:
        """Tell whether the model knows a clause of this name."""
        return clause in {field.name for field in fields(self.clauses)}


FAMILIES = (
    Family(lease_world.Clauses, tuple(leases.SCENARIOS), tuple(leases.DEEP), leases.model),
    Family(chain.Clauses, tuple(dependants.SCENARIOS), tuple(dependants.DEEP), dependants.model),
    Family(chain.Clauses, tuple(upstream.SCENARIOS), tuple(upstream.DEEP), upstream.model),
    Family(cancel.Clauses, tuple(cancel.SCENARIOS), tuple(cancel.DEEP), cancel.model),
)


def says(clauses: type[Any]) -> Iterator[tuple[str, str]]:
    """Yield each clause of a `Clauses` class with the sentence below it."""
    body = ast.parse(inspect.getsource(clauses)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            yield ast.unparse(field.target), ast.literal_eval(text.value)


def check_all(deep: bool) -> bool:
    """Search every scenario with every clause in force; tell whether nothing broke."""
    clean, total = True, 0
    for family in FAMILIES:
        for scenario in family.scenarios + (family.deep if deep else ()):
            result = search(family.model(scenario, family.clauses()), limit=2_000_000)
            sys.stdout.write(f"{result.report()}\n")
            sys.stdout.flush()
            clean = clean and result.complete and not result.violations
            total += result.states
    sys.stdout.write(f"{total} states in all\n")
    return clean


def drop(clause: str) -> bool:
    """Search without one clause and print what breaks first; tell whether anything did."""
    for family in FAMILIES:
        if not family.has(clause):
            continue
        for scenario in family.scenarios:
            result = search(family.model(scenario, family.clauses(**{clause: False})))
            if result.violations:
                sys.stdout.write(f"{result.report()}\n")
                return True
    return False


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and search; return the exit code."""
    sentences = {name: text for family in FAMILIES for name, text in says(family.clauses)}
    parser = argparse.ArgumentParser(prog="python -m tests.model.run")
    parser.add_argument("--drop", metavar="CLAUSE", choices=sorted(sentences), help="leave one clause out")
    parser.add_argument("--deep", action="store_true", help="search the larger scenarios too")
    parser.add_argument("--list", action="store_true", help="print the clauses")
    options = parser.parse_args(arguments)
    if options.list:
        width = max(map(len, sentences))
        for name, text in sentences.items():
            sys.stdout.write(f"{name:{width}}  {text}\n")
        return 0
    return 0 if (drop(options.drop) if options.drop else check_all(options.deep)) else 1


if __name__ == "__main__":
    sys.exit(main())
