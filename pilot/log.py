"""Logging of agents and pools: one line per event, UTC, to a file; the library itself never configures logging."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Utc(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time of an event in ISO 8601, UTC, to the millisecond."""
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_file(path: Path, level: int = logging.INFO) -> None:
    """Send this process's log to `path`; called once, by the main of an agent."""
    _to(logging.FileHandler(path, encoding="utf-8"), level)


def to_stderr(level: int = logging.INFO) -> None:
    """Send this process's log to stderr; called once, by the main of a pool's rank."""
    _to(logging.StreamHandler(), level)


def _to(handler: logging.Handler, level: int) -> None:
    handler.setFormatter(_Utc(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
