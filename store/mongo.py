"""The one place that knows the driver: opens the database and turns each of the driver's errors into one of ours."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import bson.errors
import pymongo.errors as driver
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database

from pilot.errors import (
    ConfigError,
    DocumentTooLarge,
    DuplicateKey,
    InvalidInput,
    PilotError,
    StoreDenied,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
)

Document = dict[str, Any]
_COLLECTIONS = (
    "tasks", "provenance", "superseded", "functions", "environments", "pilots", "pools", "scalers", "archives", "meta",
    "events",
)  # fmt: skip
P = ParamSpec("P")
R = TypeVar("R")

_DURABLE: Mapping[str, Any] = {
    "readPreference": "primary",
    "readConcernLevel": "majority",
    "w": "majority",
    "journal": True,
    "tz_aware": True,
    "appname": "pilot",
    "maxPoolSize": 8,
}
_OURS = {name.lower() for name in _DURABLE} | {
    *("connecttimeoutms", "sockettimeoutms", "serverselectiontimeoutms", "waitqueuetimeoutms"),
    *("timeoutms", "wtimeoutms", "wtimeout", "fsync", "j", "safe", "slaveok", "readpreferencetags"),
    *("maxstalenessseconds", "compressors", "zlibcompressionlevel", "minpoolsize", "waitqueuemultiple"),
}
"""URI options on which the guarantees and deadlines rest: whatever the URI says about them is dropped."""

_HOST = r"(?:\[[^\]@]*\]|[^\[\]:,@/?#]+)(?::\d+)?"
_PLAIN_URI = re.compile(
    rf"(mongodb(?:\+srv)?://)(?:([^:@/?#]*)(:[^:@/?#]*)?@)?({_HOST}(?:,{_HOST})*(?:/[^:@/?#]*)?)(?:\?([^@]*))?"
)
_SECRET = re.compile(r"((?:[^&;=]*password|authMechanismProperties)=)[^&;]*", re.I)


def redact(uri: str) -> str:
    """Return `uri` without its passwords, fit for logs and messages.

    If it is so malformed that the password's end is not certain (an unescaped ``/`` or ``@``), more is hidden.
    """
    plain = _PLAIN_URI.fullmatch(uri)
    if plain is None:
        scheme, _, rest = uri.rpartition("://")
        return f"{scheme or 'mongodb'}://***" + (f"@{rest.rpartition('@')[2]}" if "@" in rest else "")
    scheme, user, password, place, options = plain.groups()
    userinfo = "" if user is None else f"{user}{':***' if password else ''}@"
    return f"{scheme}{userinfo}{place}" + ("" if options is None else "?" + _SECRET.sub(r"\1***", options))


def connect(uri: str, timeout_s: float, select_s: float | None = None) -> MongoClient[Document]:
    """Make a client that waits at most `timeout_s` for a server, and again for an answer; speaks to nobody yet.

    With `select_s` it waits only so long for a server.

    Raises:
        InvalidInput: `uri` is not a MongoDB URI, or its options do not go together.
    """
    base, _, options = uri.partition("?")
    kept = "&".join(part for part in re.split("[&;]", options) if part and part.partition("=")[0].lower() not in _OURS)
    wait_ms = max(1, round(timeout_s * 1000))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # else a misspelt `tls=ture` is ignored with a warning
            return MongoClient(
                f"{base}?{kept}" if kept else base,
                connect=False,
                serverSelectionTimeoutMS=wait_ms if select_s is None else max(1, round(select_s * 1000)),
                connectTimeoutMS=min(wait_ms, 10_000),
                socketTimeoutMS=wait_ms,
                waitQueueTimeoutMS=wait_ms,
                wTimeoutMS=wait_ms,
                **_DURABLE,
            )
    except (driver.ConfigurationError, UserWarning, ValueError, TypeError):
        # Not `from exc`, and none of its words: it may quote a piece of a password that was not escaped.
        raise InvalidInput(
            f"cannot use {redact(uri)!r} as the store's URI: its form, a host or an option is not valid; "
            "it reads mongodb://USER:PASSWORD@HOST:PORT/?OPTION=VALUE, with user and password percent-encoded"
        ) from None


class Store:
    """A project's database: its collections, read and written with the guarantees that everything above relies on.

    A context manager: `with` connects, and closes at its end. Safe to share between threads, not across a fork.
    Reads go to the primary and see what a majority holds, writes are acknowledged by a majority's journals,
    whatever `uri` says. A call waits at most `timeout_s` for a server (or `select_s`), and again for its answer.
    """

    database: Database[Document]
    tasks: Collection[Document]
    provenance: Collection[Document]
    superseded: Collection[Document]
    functions: Collection[Document]
    environments: Collection[Document]
    pilots: Collection[Document]
    pools: Collection[Document]
    scalers: Collection[Document]
    archives: Collection[Document]
    meta: Collection[Document]
    events: Collection[Document]

    def __init__(
        self, uri: str, database: str, *, timeout_s: float = 30.0, select_s: float | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._uri = uri
        self._name = database
        self._timeout_s = timeout_s
        self._select_s = select_s
        self._after = after
        """Called when it has been closed, or could not be opened."""
        self._client: MongoClient[Document] | None = None

    def __repr__(self) -> str:
        return f"Store({redact(self._uri)!r}, {self._name!r})"

    @property
    def where(self) -> str:
        """Database and host, for messages."""
        return f"database {self._name!r} at {redact(self._uri).partition('?')[0]}"

    def __enter__(self) -> Self:
        """Connect, and make sure that a server answers and lets us in.

        Raises:
            StoreUnavailable: no server answered in time.
            StoreDenied: it refuses the user or the password.
            InvalidInput: the URI or the database's name is malformed.
            ConfigError: the server is too old, or a name in the URI does not resolve.
        """
        client = connect(self._uri, self._timeout_s, self._select_s)
        try:
            with translating("open the store", self.where):
                self.database = client[self._name]
                for name in _COLLECTIONS:
                    setattr(self, name, self.database[name])
                client.admin.command("ping")
        except BaseException:
            client.close()
            self._closed()
            raise
        self._client = client
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            self._closed()

    def _closed(self) -> None:
        if self._after is not None:
            self._after()


# -- its errors -----------------------------------------------------------------------------------

_BY_CLASS: tuple[tuple[type[Exception], type[PilotError]], ...] = (  # the first that fits
    (driver.ConnectionFailure, StoreUnavailable),  # with AutoReconnect, "has not necessarily succeeded"
    (driver.ProtocolError, StoreUnavailable),
    (driver.CursorNotFound, StoreUnavailable),
    (driver.ExecutionTimeout, StoreUnavailable),
    (driver.WriteConcernError, StoreUnavailable),  # done on the primary; not known to last
    (driver.InvalidURI, InvalidInput),
    (driver.InvalidName, InvalidInput),
    (driver.ConfigurationError, ConfigError),
    (driver.DocumentTooLarge, DocumentTooLarge),
    (driver.PyMongoError, StoreRejected),
    (bson.errors.BSONError, StoreRejected),
    (OverflowError, DocumentTooLarge),  # the encoder's "MongoDB can only handle up to 8-byte ints"
    (RecursionError, DocumentTooLarge),  # the encoder's, for endless nesting
    (UnicodeEncodeError, StoreRejected),  # the encoder's, for lone surrogates
)
_BY_CODE: Mapping[type[PilotError], set[int]] = {
    StoreFull: {14031, 12501},
    StoreDenied: {11, 13, 18, 391, 8000},  # no such user, unauthorized, authentication failed, expired, Atlas
    DocumentTooLarge: {15, 10334, 17280, 17419, 17420},
    StoreUnavailable: {
        *(6, 7, 89, 9001, 202, 317, 384),  # network, inside the cluster
        *(10107, 13435, 10058, 189, 91, 11600, 11602, 13436, 94, 11601),  # not primary, shutting down, interrupted
        *(24, 46, 50, 262, 290, 112, 175, 237, 462),  # locks, limits of time, conflicts, killed cursors, rate
        *(64, 133, 134, 63, 150, 234, 13388),  # write concern, no such node now, sharding that changes
    },
}
_NO_SPACE = re.compile(r"no space left|out of disk space|disk quota exceeded|space quota", re.I)
_TOO_BIG = re.compile(r"too large|BSON size limit", re.I)
_WORST_FIRST = (StoreFull, StoreDenied, StoreUnavailable, DocumentTooLarge, StoreRejected, DuplicateKey)

_ADVICE: Mapping[type[PilotError], str] = {
    StoreUnavailable: "it may or may not have happened: repeat it; if that does not help, see `pilot store status`",
    StoreFull: "free space or raise the quota, then repeat",
    StoreDenied: "check the user, the password and the rights in the store's URI",
    DocumentTooLarge: "store less in one document",
    DuplicateKey: "a document with this _id is stored already",
    InvalidInput: "check the store's URI and the database's name",
    ConfigError: "check the options in the store's URI and the server's version",
    StoreRejected: "repeating does not help; this is a defect of pilot, please report it",
}


def _by_code(code: int | None, text: str, details: Mapping[str, Any]) -> type[PilotError]:
    if code == 11000:  # in another unique index it is not "this document is stored already"
        return DuplicateKey if details.get("keyPattern", {"_id": 1}) == {"_id": 1} else StoreRejected
    if _NO_SPACE.search(text):
        return StoreFull
    return next((kind for kind, codes in _BY_CODE.items() if code in codes), StoreRejected)


def _by_bulk(details: Mapping[str, Any]) -> type[PilotError]:
    found: set[type[PilotError]] = set()
    for error in details.get("writeErrors") or ():
        found.add(_by_code(error.get("code"), str(error.get("errmsg")), error))
    for error in details.get("writeConcernErrors") or ():
        found.add(StoreFull if _NO_SPACE.search(str(error)) else StoreUnavailable)
    if isinstance(top := details.get("error"), Exception):
        found.add(_counterpart(top) or StoreRejected)
    return next((kind for kind in _WORST_FIRST if kind in found), StoreRejected)


def _counterpart(exc: BaseException) -> type[PilotError] | None:
    if isinstance(exc, driver.BulkWriteError | driver.ClientBulkWriteException):
        return _by_bulk(exc.details)
    if isinstance(exc, driver.EncryptionError):
        return _counterpart(exc.cause) or StoreRejected
    kind = next((ours for theirs, ours in _BY_CLASS if isinstance(exc, theirs)), None)
    if isinstance(exc, driver.OperationFailure):
        if exc.has_error_label("RetryableWriteError"):
            return StoreUnavailable
        if kind is StoreRejected or _NO_SPACE.search(str(exc)):
            return _by_code(exc.code, str(exc), exc.details or {})
    if isinstance(exc, bson.errors.InvalidDocument) and _TOO_BIG.search(str(exc)):
        return DocumentTooLarge
    return kind


def words(exc: BaseException) -> str:
    """Return what an error of the driver says, without what only its makers want to know."""
    text = str(exc) or type(exc).__name__
    details = getattr(exc, "details", None)
    if isinstance(details, Mapping):
        parts = [details, *(details.get("writeConcernErrors") or ()), *(details.get("writeErrors") or ())]
        text = next((str(part["errmsg"]) for part in parts if part.get("errmsg")), text)
    text = re.split(r", full error: |, Topology Description: | \(configured timeouts: ", text)[0]
    return text if len(text) <= 300 else text[:299] + "…"


def translated(exc: BaseException, action: str, where: str = "") -> PilotError | None:
    """Return our counterpart of an error that came up during `action`; None if it is not one of the driver's."""
    kind = _counterpart(exc)
    if kind is None:
        return None
    return kind(f"cannot {action}{f' in {where}' if where else ''}: {words(exc)}; {_ADVICE[kind]}")


class translating:
    """Turn each error of the driver into ours: a context manager, and a decorator of functions and methods.

    A decorated function whose first argument is a `Store` names it in its messages. Generators cannot be
    decorated, as their body runs after the call: use ``with`` inside. `action` is to stand after "cannot".
    """

    def __init__(self, action: str, where: str = "") -> None:
        self._action = action
        self._where = where

    def __enter__(self) -> None: ...

    def __exit__(self, _: type[BaseException] | None, exc: BaseException | None, __: TracebackType | None) -> None:
        if exc is not None and (ours := translated(exc, self._action, self._where)) is not None:
            raise ours from exc

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate `function`."""
        if inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator: use `with translating(…)` inside it")

        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            where = args[0].where if args and isinstance(args[0], Store) else self._where
            with translating(self._action, where):
                return function(*args, **kwargs)

        return wrapper


def duplicates(exc: driver.BulkWriteError, action: str = "write documents") -> list[Any]:
    """Return the `_id`s that a bulk write found stored already, if nothing else went wrong in it.

    Raises:
        StoreError: something else did; the worst of it, translated.
    """
    if (ours := translated(exc, action)) is not None and not isinstance(ours, DuplicateKey):
        raise ours from exc
    return [e["keyValue"]["_id"] if "keyValue" in e else e["op"]["_id"] for e in exc.details["writeErrors"]]
