"""A group of tasks as a user's program sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pilot.future import Future
from pilot.store import remarks
from pilot.store.mongo import Store


class Group:
    """A named set of tasks; `Project.group` returns it. It is there as long as a task is in it.

    Iterating gives the ids of its tasks, oldest first; `project.task` makes a future of one.

    Args:
        store: the database.
        name: the group's.
        ids: gives the ids of tasks that are named by their futures or by shortened ids.
    """

    def __init__(self, store: Store, name: str, ids: Callable[..., list[str]]) -> None:
        self.name = remarks.word(name, "group's name")
        self._store = store
        self._ids = ids

    def __repr__(self) -> str:
        return f"<Group {self.name!r}>"

    def __iter__(self) -> Iterator[str]:
        return iter(remarks.members(self._store, self.name))

    def add(self, *tasks: str | Future) -> None:
        """Put tasks into the group.

        Raises:
            TaskNotFound: one does not exist.
            InvalidInput: one is in as many groups as it may be.
        """
        remarks.group(self._store, self.name, add=self._ids(*tasks))

    def remove(self, *tasks: str | Future) -> None:
        """Take tasks out of the group."""
        remarks.group(self._store, self.name, remove=self._ids(*tasks))
