"""Tags, notes and groups: what people write on tasks afterwards, and which the queue leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

import pilot
from pilot.errors import InvalidInput, TaskNotFound
from pilot.states import Outcome
from pilot.store import remarks, schema, tasks
from pilot.store.mongo import Store
from tests import queue_rig as rig
from tests.cli_rig import Call
from tests.queue_rig import NOW, submit, task


def words(store: Store, name: str, field: str) -> list[str] | None:
    """Return a task's tags or groups; None if it has no such field."""
    found: list[str] | None = tasks.get(store, [name])[name].get(field)
    return found


# -- tags -----------------------------------------------------------------------------------------


def test_tags_are_added_once_and_removed(store: Store) -> None:
    submit(store, task("a") | {"tags": ["first"]}, task("b"))
    remarks.tag(store, ["a", "b"], add=["good", "$odd", "good"])
    remarks.tag(store, ["a"], add=["good"])
    assert (words(store, "a", "tags"), words(store, "b", "tags")) == (["first", "good", "$odd"], ["good", "$odd"])
    remarks.tag(store, ["a", "b"], add=["new"], remove=["good", "$odd", "never there"])
    assert (words(store, "a", "tags"), words(store, "b", "tags")) == (["first", "new"], ["new"])
    remarks.tag(store, ["b"], remove=["new"])
    assert words(store, "b", "tags") is None


@pytest.mark.parametrize("word", ["", " x", "x ", "two\nlines", "x" * 101, 7])
def test_words_that_cannot_be_tags_or_groups(store: Store, word: Any) -> None:
    submit(store, task("a"))
    with pytest.raises(InvalidInput, match="cannot be a tag"):
        remarks.tag(store, ["a"], add=["fine", word])
    with pytest.raises(InvalidInput, match="cannot be a group's name"):
        remarks.group(store, word, add=["a"])
    assert (words(store, "a", "tags"), words(store, "a", "groups")) == (None, None)
    remarks.tag(store, ["a"], add=["two words", "x" * 100, "ü"])


def test_a_task_does_not_grow_without_bound(store: Store) -> None:
    submit(store, task("a"))
    remarks.tag(store, ["a"], add=[str(n) for n in range(remarks.WORDS)])
    with pytest.raises(InvalidInput, match=r"'a' cannot have more tags: 100 at most"):
        remarks.tag(store, ["a"], add=["one more"])
    for number in range(remarks.NOTES):
        remarks.note(store, ["a"], f"note {number}", "me", NOW)
    with pytest.raises(InvalidInput, match=r"'a' cannot have more notes: 50 at most"):
        remarks.note(store, ["a"], "one more", "me", NOW)
    with pytest.raises(InvalidInput, match="2001 characters"):
        remarks.note(store, ["a"], "x" * 2001, "me", NOW)
    with pytest.raises(InvalidInput, match="0 characters"):
        remarks.note(store, ["a"], "", "me", NOW)


def test_the_queue_and_people_leave_each_other_alone(store: Store, a: str) -> None:
    """Whatever is written while a task runs is there at its end, and changes nothing of how it ends."""
    submit(store, task("t", retries=1), task("c", "t"))
    held = rig.lease(store, a)
    before = tasks.get(store, ["t"])["t"]
    remarks.tag(store, ["t"], add=["seen"])
    remarks.note(store, ["t"], "hm", "me", NOW)
    remarks.group(store, "g", add=["t", "c"])
    after = tasks.get(store, ["t"])["t"]
    assert {key: after[key] for key in before} == before
    rig.commit(store, a, {("t", held["t"]): Outcome.FAILED})
    rig.run(store, a, t=Outcome.SUCCEEDED)
    rig.run(store, a, c=Outcome.SUCCEEDED)
    assert rig.states(store) == {"t": "done", "c": "done"}
    assert remarks.members(store, "g") == ["c", "t"]
    done = tasks.get(store, ["t"])["t"]
    assert (done["tags"], done["notes"]) == (["seen"], [{"time": NOW, "user": "me", "text": "hm"}])


# -- groups ---------------------------------------------------------------------------------------


def test_a_group_is_there_as_long_as_a_task_is_in_it(store: Store) -> None:
    submit(store, *(task(f"t{n}") for n in range(5)))
    store.tasks.drop_indexes()
    schema.create(store, "project-of-the-tests")
    assert (remarks.groups(store), remarks.members(store, "g")) == ({}, [])
    assert not schema.has_remarks(store, "groups")  # who has no groups does not pay for them
    remarks.group(store, "g", add=["t1", "t3", "t1"])
    remarks.group(store, "h", add=["t3"])
    assert remarks.groups(store) == {"g": 2, "h": 1}
    assert remarks.members(store, "g") == ["t1", "t3"]
    assert [doc["_id"] for doc in tasks.listing(store, group="g")] == ["t3", "t1"]
    assert store.tasks.find({"groups": "g"}, hint="groups").explain()["executionStats"]["totalDocsExamined"] == 2
    remarks.group(store, "g", remove=["t1", "t3", "t4"])
    assert remarks.groups(store) == {"h": 1}
    assert words(store, "t1", "groups") is None


# -- as people see it -----------------------------------------------------------------------------


def test_python(project: pilot.Project) -> None:
    @pilot.task(tags=["at submit"])
    def double(x: int) -> int:
        return 2 * x

    one, two = double.map([1, 2])
    assert one.result(timeout=60) == 2
    project.tag(one, two.id, add=["later"], remove=["at submit"])
    project.note(one, text="half of four")
    group = project.group("python's")
    group.add(one, two)
    group.remove(two)
    assert list(group) == [one.id]
    assert repr(group) == '<Group "python\'s">'
    document = tasks.get(project.store, [one.id])[one.id]
    assert document["tags"] == ["later"]
    assert document["notes"][0]["text"] == "half of four"
    record = one.record()
    assert record is not None
    assert record["tags"] == ["at submit"]  # as they were when it ran
    with pytest.raises(InvalidInput):
        project.group("")
    with pytest.raises(TaskNotFound):
        group.add("nothing like it")
    group.remove(one)


def test_commands(project: pilot.Project, call: Call) -> None:
    def same(x: Any) -> Any:
        return x

    first, second = pilot.task(same).map([1, 2])
    second.result(timeout=60)
    assert call("tag", first.id, second.id, "--add", "a b", "-a", "c")[:2] == (
        0, f"{first.id}: a b c\n{second.id}: a b c\n",
    )  # fmt: skip
    assert call("tag", first.id, "--remove", "a b", "--remove", "c").out == f"{first.id}: no tags\n"
    assert [one["task"] for one in call("tasks", "--tag", "a b", "--json").json] == [second.id]
    assert call("note", first.id, "-t", "as [red]expected[/]")[:2] == (0, "")
    call("note", first.id, "-t", "second thought")
    assert call("note", first.id).out.endswith(": second thought\n")
    written = call("note", first.id, second.id, "--json").json
    assert [[note["text"] for note in one["notes"]] for one in written] == [
        ["as [red]expected[/]", "second thought"], [],
    ]  # fmt: skip
    assert call("group", "add", "[g]", first.id, second.id).out == "2 tasks in group [g]\n"
    listed = {one["task"]: one for one in call("tasks", "--group", "[g]", "--json").json}
    assert listed.keys() == {first.id, second.id}
    assert listed[first.id]["groups"] == ["[g]"]
    assert {"group": "[g]", "tasks": 2} in call("group", "list", "--json").json
    assert "[g]" in call("group", "list").out
    shown = call("show", first.id).out
    assert "[g]" in shown
    assert "second thought" in shown
    assert "1 earlier, --all shows them" in shown
    assert "as [red]expected[/]" in call("show", first.id, "--all").out
    assert call("group", "remove", "[g]", "--all").out == "2 tasks not in group [g] any more\n"
    assert call("tasks", "--group", "[g]").out == "no such task\n"


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["tag", "ID"], 2, "say what to --add or to --remove"),
        (["tag", "ID", "--add", " "], 1, "' ' cannot be a tag"),
        (["tag", "nothing", "--add", "x"], 1, "no task 'nothing'"),
        (["note"], 2, "Missing argument"),
        (["note", "ID", "-t", " "], 1, "cannot be written"),
        (["group", "add", "x"], 2, "Missing argument"),
        (["group", "add", "x\n", "ID"], 1, "cannot be a group's name"),
        (["group", "remove", "x"], 2, "name tasks, or say --all"),
        (["group", "remove", "x", "ID", "--all"], 2, "name tasks, or say --all"),
    ],
)
def test_bad_input(project: pilot.Project, call: Call, argv: list[str], code: int, said: str) -> None:
    def nothing() -> None: ...

    future = pilot.task(nothing).submit()
    found = call(*[future.id if word == "ID" else word for word in argv])
    assert found.code == code
    assert said in found.err
