"""`pilot.File`: a file or directory as a value, known by its content.

Its encoding is a form of `pilot.plain` with name, hash and size, not the bytes, so that records show it and every
value may hold some. The bytes are kept in the object repository, or stay in place; which of the two is part of the
value, where they lie is not: the repository knows that.
"""

from __future__ import annotations

import os
from typing import IO, Any, Literal, Protocol, TypeAlias

from pilot import content
from pilot.content import Content
from pilot.context import here
from pilot.errors import EncodingError, InvalidInput, ObjectMissing
from pilot.model import IN_PLACE
from pilot.plain import FORM, dump, parse

Keep: TypeAlias = Literal[True, "in place"]


class Files(Protocol):
    """The object repository as far as files go; `pilot.store.files` has it."""

    def keep(self, path: str, owned: bool) -> Content:
        """Keep a file or directory; durable when this returns.

        Args:
            path: where it lies.
            owned: it lies in a directory of ours that nobody will use again.

        Raises:
            Unfit: it cannot be read, or changes while it is.
            ObjectStoreFull: there is no room.
        """
        ...

    def place(self, path: str) -> Content:
        """Hash a file or directory and note where it lies.

        Raises:
            Unfit: as above.
        """
        ...

    def touch(self, of: Content) -> None:
        """Renew what is kept, since another value names it now."""

    def locate(self, of: Content, name: str, in_place: bool) -> str:
        """Return where the bytes are, having made sure that they have the hash; of a tree, a directory.

        Raises:
            ObjectMissing: they are nowhere.
            ObjectDropped: somebody gave them up.
            ObjectCorrupt: there are others.
        """
        ...

    def copy(self, of: Content, name: str, in_place: bool, target: str) -> None:
        """Write a copy, which its user may change.

        Raises:
            ObjectMissing, ObjectCorrupt: as above.
        """


class File:
    """A file or directory as a value: as an argument of a task, in its result, as input or output of a command.

    Args:
        path: where it is; as an output of a command, a glob below its working directory.
        keep: True: its bytes are kept in the object repository, once however many values name them. ``"in place"``:
            they are hashed and stay where they are; whoever edits or removes them there makes the value unreadable,
            which is noticed.
    """

    __slots__ = ("_content", "_files", "_path", "given", "keep", "name", "owned")

    def __init__(self, path: str | os.PathLike[str], keep: Keep = True) -> None:
        if keep is not True and keep != IN_PLACE:
            raise InvalidInput(f'keep={keep!r} of a file is neither True nor "in place"')
        self.given = os.fspath(path)
        """What the user wrote."""
        self.keep: Keep = keep
        self.owned = False
        """It lies in a directory of ours that is about to be removed; a command sets it."""
        self._path = os.path.abspath(self.given)
        self.name = os.path.basename(self._path)
        """The last part of its path."""
        self._content: Content | None = None
        """Known if it comes from a record; else it is looked up whenever it is asked for."""
        self._files: Files | None = None

    # -- what it is ---------------------------------------------------------------------------------

    @property
    def content(self) -> Content:
        """Its hash, size and kind; of a file that is not a value yet, as it is now.

        Raises:
            EncodingError: it cannot be read.
        """
        if self._content is not None:
            return self._content
        return content.manifest(self._path)[0] if os.path.isdir(self._path) else content.of_file(self._path)

    @property
    def hash(self) -> str:
        """BLAKE2b-256 of its bytes, in hexadecimal; of a directory, of its manifest."""
        return self.content.hash

    @property
    def size(self) -> int:
        """Bytes; of a directory, of all files in it."""
        return self.content.size

    @property
    def is_tree(self) -> bool:
        """Whether it is a directory."""
        return self.content.tree

    def __repr__(self) -> str:
        if self._content is None:
            return f"File({self.given!r})" if self.keep is True else f"File({self.given!r}, keep={self.keep!r})"
        kind = "tree" if self._content.tree else "file"
        return f"<{kind} {self.name!r}, {self._content.size:,} bytes, {self._content.hash[:10]}>"

    def __eq__(self, other: object) -> bool:
        """Whether name, content and keeping are the same."""
        return isinstance(other, File) and (self.name, self.keep, self.content) == (
            other.name, other.keep, other.content,
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self.name, self.keep))

    # -- its bytes ----------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Where it can be read here and now; bytes are compared with the hash before. Not to be written to.

        Raises:
            ObjectMissing, ObjectDropped, ObjectCorrupt: the bytes are gone, given up, or others; the message says more.
        """
        if self._content is None:
            return self._path
        return self._found_by().locate(self._content, self.name, self.keep == IN_PLACE)

    def _found_by(self) -> Files:
        if self._files is None:
            raise ObjectMissing(f"the file {self.name!r} was read without a project, so its bytes are not found")
        return self._files

    def __fspath__(self) -> str:
        return self.path

    def open(self, mode: Literal["r", "rb"] = "rb", encoding: str | None = "utf-8") -> IO[Any]:
        """Open it for reading, as bytes, or with ``"r"`` as text."""
        if mode not in ("r", "rb"):
            raise InvalidInput(f"a file that is a value can be read only: mode {mode!r} is neither 'rb' nor 'r'")
        return open(self.path, mode, encoding=None if mode == "rb" else encoding)

    def read_bytes(self) -> bytes:
        """Return all its bytes."""
        with self.open() as file:
            data: bytes = file.read()
            return data

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return all its text."""
        with self.open("r", encoding) as file:
            text: str = file.read()
            return text

    def copy_to(self, target: str | os.PathLike[str]) -> str:
        """Write a copy, which may be changed, and return its path; one that is there is replaced.

        Args:
            target: the file or directory to make.
        """
        target = os.fspath(target)
        if self._content is not None:
            self._found_by().copy(self._content, self.name, self.keep == IN_PLACE, target)
        else:
            import shutil

            (shutil.copytree if os.path.isdir(self._path) else shutil.copy)(self._path, target)
        return target

    # -- as a value ---------------------------------------------------------------------------------

    def __pilot_form__(self) -> list[Any]:
        """Keep it, or note where it lies, and return its form.

        Raises:
            EncodingError: it cannot be read, or no project is open.
            ObjectStoreFull: there is no room for it.
        """
        objects = here.repository
        if objects is None:
            raise EncodingError(f"{self!r} cannot be kept, since no project is open here")
        files: Files = objects.files
        found = self._content
        if found is not None and self._files is files:
            if self.keep is True:
                files.touch(found)
        elif self.keep is True:
            found = files.keep(self.path, self.owned)
        else:
            found = files.place(self.path)
        fields: dict[str, Any] = {"name": self.name, "hash": found.hash, "size": found.size}
        if found.executable:
            fields["executable"] = True
        if found.tree:
            fields["tree"] = True
        if self.keep == IN_PLACE:
            fields["keep"] = IN_PLACE
        return ["file", fields]

    @classmethod
    def read(cls, fields: dict[str, Any]) -> File:
        """Return the file that a form names."""
        found = cls.__new__(cls)
        found.name, found.keep, found.owned = fields["name"], fields.get("keep", True), False
        found.given = found._path = ""
        found._content = content_of(fields)
        objects = here.repository
        found._files = None if objects is None else objects.files
        return found

    def __reduce__(self) -> Any:
        """In pickles stands the form too, as text: what files a value names can be seen without loading it."""
        if self._content is None and here.repository is None:
            return File, (self._path, self.keep)
        return of_text, (dump({FORM: self.__pilot_form__()}),)

    def __copy__(self) -> File:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> File:
        return self


def of_text(text: str) -> File:
    """Return the file that a form names, which stands in a pickle as text."""
    return File.read(parse(text, 0)[0][FORM][1])


def content_of(fields: dict[str, Any]) -> Content:
    """Return the content that a form names."""
    return Content(fields["hash"], fields["size"], fields.get("executable", False), fields.get("tree", False))
