"""Checks that run one after the other: each finding is printed as it comes, an error is a finding like others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from pilot.cli import text
from pilot.cli.common import console, emit, escaped
from pilot.errors import PilotError
from pilot.findings import Finding, Verdict, wrong

T = TypeVar("T")

Check = Callable[[T], Iterator[Finding]]

_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.WRONG: "red"}


def examine(what: T, checks: Sequence[tuple[str, Check[T]]]) -> Iterator[Finding]:
    """Run all checks; one that ends in an error says so and the others go on."""
    for name, check in checks:
        try:
            yield from check(what)
        except PilotError as exc:
            yield wrong(name, str(exc))
        except OSError as exc:
            yield wrong(name, f"cannot look at it: {exc}")


def report(findings: Iterable[Finding], as_json: bool) -> int:
    """Print findings as they come, or all of them as JSON; return the exit code: 1 if anything is wrong."""
    out = console()
    seen = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            style = _STYLES[finding.verdict]
            out.print(f"[{style}]{finding.verdict:5}[/]  {finding.check:11}{escaped(finding.text)}", soft_wrap=True)
    bad = sum(finding.verdict is Verdict.WRONG for finding in seen)
    if as_json:
        emit({"healthy": not bad, "checks": [finding._asdict() for finding in seen]})
    elif bad:
        out.print(f"[red]{text.count(bad, 'check')} wrong[/]")
    return 1 if bad else 0
