"""Values on their way into and out of a task; the child's side.

Where bytes lie is decided by their size: small ones travel with the task, others are files in the object
repository, which the process' entry passes in (this layer does not know `pilot.store`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from pilot.context import here
from pilot.errors import DecodingError, ObjectCorrupt, ObjectMissing
from pilot.model import INLINE_VALUE_BYTES, Blob, Work, whole_result
from pilot.values import Encoded, decode, digest, names_files


class Objects(Protocol):
    """The object repository as a child uses it."""

    def get(self, hash: str) -> bytes | memoryview:
        """Return the bytes of an object; they have this hash.

        Raises:
            ObjectMissing: there is none.
            ObjectCorrupt: its bytes have another hash.
        """
        ...

    def put(self, encoded: Encoded) -> str:
        """Store an encoded value durably and return its hash.

        Raises:
            ObjectStoreFull: there is no room.
        """
        ...


class Exchange:
    """Turns blobs into values and values into blobs; from then on this process keeps and finds files there too.

    Args:
        objects: where large values are.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        here.repository = objects

    def fetch(self, blob: Blob) -> bytes | memoryview:
        """Return a blob's bytes, from wherever they are, after checking that they have its hash.

        Raises:
            ObjectMissing: the object is gone.
            ObjectCorrupt: the bytes have another hash.
        """
        if blob.data is None:
            return self._objects.get(blob.hash)
        if digest(blob.data) != blob.hash:
            raise ObjectCorrupt(f"a value that came with the task does not have its hash {blob.hash!r}")
        return blob.data

    def inputs(self, work: Work, only: Collection[str] | None = None) -> list[tuple[str, Any]]:
        """Return the task's inputs (or those named in `only`) in order, with linked values in the places of references.

        Raises:
            ObjectMissing: an object is gone, or a linked value did not come with the task.
            ObjectCorrupt: bytes have another hash.
            DecodingError: bytes do not decode here.
        """

        def resolve(task: str, output: str | None) -> Any:
            blob = work.linked.get((task, output))
            if blob is not None:
                return decode(self.fetch(blob))
            if output is not None and (task, None) in work.linked:
                return _item(decode(self.fetch(work.linked[task, None])), output, task)
            every = {name or "": decode(self.fetch(blob)) for (of, name), blob in work.linked.items() if of == task}
            if output is not None or not every:
                raise ObjectMissing(f"output {output!r} of task {task} did not come with task {work.task}")
            return whole_result(every)

        return [(name, decode(self.fetch(blob), resolve)) for name, blob in work.inputs if only is None or name in only]

    def keep(self, encoded: Encoded) -> Blob:
        """Return the blob of an output; a large one is in the object repository when this returns.

        Raises:
            ObjectStoreFull: there is no room for it.
        """
        if encoded.size > INLINE_VALUE_BYTES:
            return Blob(self._objects.put(encoded), encoded.size, None, names_files(encoded))
        return Blob(encoded.hash, encoded.size, encoded.data)


def _item(value: Any, name: str, task: str) -> Any:
    """Return the item of a function's result that ``future[name]`` stands for."""
    try:
        return value[name]
    except (KeyError, TypeError, IndexError) as exc:
        raise DecodingError(f"the result of task {task} has no item {name!r}: it is {type(value).__name__!r}") from exc
