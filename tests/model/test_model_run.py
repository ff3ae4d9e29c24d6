"""The program that prints the searches."""

from __future__ import annotations

import pytest

from tests.model import cancel, chain, lease_world, run


def test_a_dropped_clause_prints_the_numbered_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--drop", "awaited_first"]) == 0
    printed = capsys.readouterr().out
    assert "broken: a child waits for ever, though its parent has ended" in printed
    assert "     2. correct: reads p, ready" in printed


def test_an_unknown_clause_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["--drop", "gravity"])
    assert stop.value.code == 2
    assert "gravity" in capsys.readouterr().err


def test_every_clause_is_listed_with_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    listed = {line.split()[0] for line in printed}
    for clauses in (lease_world.Clauses, chain.Clauses, cancel.Clauses):
        assert {name for name, text in run.says(clauses) if text} <= listed
        assert len(dict(run.says(clauses))) == len(clauses.__dataclass_fields__)
