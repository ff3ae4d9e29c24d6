"""Logging of agents and pools: one line per event, UTC, to a file; the library itself never configures logging."""

from __future__ import annotations

import logging
import time
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Utc(logging.Formatter):
    converter = time.gmtime
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


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
