"""The one tree of errors that `pilot` raises.

Every class says when it is raised and what a caller can do. Messages read: what was tried, on what,
what happened, what to do; lower case, values by ``!r``, no trailing dot.
"""

from __future__ import annotations


class PilotError(Exception):
    """Base of everything that this package raises on purpose."""


# -- what the user gave ---------------------------------------------------------------------------


class InvalidInput(PilotError, ValueError):
    """A value given by the user is not acceptable; the message names it and what is expected."""


class EncodingError(InvalidInput):
    """A value cannot be encoded (an argument at submit, a result at the end of a task)."""


class ExpressionError(InvalidInput):
    """A query cannot be read: `reason` says why in one line, `pointer` shows the character, the text above it.

    Args:
        reason: what is wrong.
        text: the expression.
        position: of the character, from 0; the text's length if something is missing at its end.
    """

    def __init__(self, reason: str, text: str, position: int) -> None:
        self.position = position
        self.reason = f"cannot read the expression at character {position + 1}: {reason}"
        start = max(0, position - 60)
        shown = "".join(c if c.isprintable() else " " for c in text[start : position + 40])
        self.pointer = f"{shown}\n{' ' * (position - start)}^"
        super().__init__(f"{self.reason}\n{self.pointer}")


class ForeignFuture(InvalidInput):
    """A future of another project, or one that makes a cycle, was given as an argument."""


class TaskNotFound(PilotError, LookupError):
    """No task has this id, or a shortened id fits several."""


class RecordNotFound(PilotError, LookupError):
    """No record has this id, or made or used this value."""


class DrawingError(PilotError):
    """A picture cannot be made: Graphviz's `dot` is not there, refused, or took too long."""


class PackageMissing(PilotError, ImportError):
    """A Python package that only some need is not installed; the message says how to get it."""


class NotOffered(UserWarning):
    """No pilot that is up can run what was submitted; it waits until one can. A warning, not an error."""


# -- project and trust ----------------------------------------------------------------------------


class ProjectError(PilotError):
    """The project directory or its settings cannot be used as they are."""


class ProjectNotFound(ProjectError):
    """No ``.pilot`` directory in the working directory or above it."""


class ProjectExists(ProjectError):
    """``pilot init`` where a project already is."""


class ConfigError(ProjectError):
    """A configuration file has a wrong key or value; the message names file, key and value."""


class SignatureError(PilotError):
    """A signature does not fit its payload: another key, or somebody changed the document.

    Nothing of the payload has been unpickled or run.
    """


class NotTrusted(SignatureError):
    """It was imported from a project whose key is not trusted here: it can be read, not unpickled or used by tasks."""


# -- values and objects ---------------------------------------------------------------------------


class DecodingError(PilotError):
    """Stored bytes do not decode to a value (missing module, damaged bytes)."""


class PythonMismatch(DecodingError):
    """The submitter's Python minor version is not this one: pickled code does not load across them."""


class CodeChanged(DecodingError):
    """The source file of a function is no longer the one that was recorded at submit."""


class ObjectMissing(PilotError):
    """The object repository has no file for this hash."""


class ObjectDropped(ObjectMissing):
    """Somebody gave up the bytes of this object on purpose; the message says who and when. The hash stays."""


class ObjectCorrupt(PilotError):
    """An object's bytes do not have the hash that names it. It was not served."""


class ObjectStoreFull(PilotError):
    """The object repository cannot take more bytes (disk full or quota)."""


class ArchiveError(PilotError):
    """An archive cannot be read or written: truncated, altered, of a newer release; the message names the entry."""


class ArchiveConflict(ArchiveError):
    """An archive holds something that is here already with other content. Nothing of the archive was stored."""


# -- the store ------------------------------------------------------------------------------------


class StoreError(PilotError):
    """Base of what the database can answer."""


class StoreUnavailable(StoreError):
    """The database did not answer, or not for certain: the call may or may not have happened.

    Every operation of `pilot.store` is idempotent: repeat it.
    """


class StoreFull(StoreError):
    """The database cannot take more data (disk full or quota). Free space, then repeat."""


class StoreDenied(StoreError):
    """The database refused the user or password, or the user lacks a right."""


class StoreRejected(StoreError):
    """The database refused the operation itself; repeating it will not help. This is a defect."""


class DocumentTooLarge(StoreRejected):
    """A document is over the database's limit, or holds a number outside its range."""


class DuplicateKey(StoreError):
    """A document with this ``_id`` is already stored."""


class SchemaMismatch(StoreError):
    """The database was made by a newer or an older `pilot`; the message says what to do."""


class ServerError(StoreError):
    """The embedded database server cannot be started, reached or stopped."""


class ServerNotFound(ServerError):
    """No ``mongod`` program was found; the message gives the three ways to get one."""


# -- the life of a task ---------------------------------------------------------------------------


class IllegalTransition(PilotError):
    """A task was to move between states that the table does not connect. This is a defect."""


class TaskError(PilotError):
    """Base of what `Future.result` raises for a task that did not succeed."""


class TaskFailed(TaskError):
    """The task ended `failed`; the text has the remote traceback, host and task id.

    Args:
        task: the task's id.
        reason: the last attempt's outcome or ``upstream``, ``missing``, ``record`` …
        message: everything worth reading, with the remote traceback.
        record: id of the official record, if an attempt began.
    """

    def __init__(self, task: str, reason: str, message: str, record: str | None = None) -> None:
        super().__init__(message)
        self.task = task
        self.reason = reason
        self.record = record

    def __reduce__(self) -> tuple[type[TaskFailed], tuple[str, str, str, str | None]]:
        return type(self), (self.task, self.reason, str(self), self.record)


# -- pilots and pools -----------------------------------------------------------------------------


class PilotDied(PilotError):
    """A pilot that was waited for is no longer there; the message has its last words."""


class PoolError(PilotError):
    """A pool could not start or work as asked."""


class LauncherNotFound(PoolError):
    """The site's MPI launcher is not on the PATH."""


class WorldSizeMismatch(PoolError):
    """The launcher started singletons instead of one MPI program."""


class SchedulerError(PilotError):
    """Base of what goes wrong between us and a batch system; the message has its own words."""


class SchedulerNotFound(SchedulerError):
    """One of the batch system's commands is not on the PATH."""


class SchedulerUnreachable(SchedulerError):
    """The batch system did not answer in time, or its server is away. Nothing is known; ask again later."""


class SubmissionRejected(SchedulerError):
    """The batch system refused a job; the same request will be refused again."""


class Fenced(PoolError):
    """This pool was declared dead by somebody else: its token is void."""
