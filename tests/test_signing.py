"""Keys and signatures; what tampering with the database comes to."""

from __future__ import annotations

import hmac
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot import signing
from pilot.errors import ConfigError, ProjectError, ProjectExists, SignatureError
from pilot.functions import describe
from pilot.model import SCHEMA, Blob, Command, Input, Link
from pilot.resources import Resources, TaskSpec
from pilot.signing import Signer
from pilot.states import Kind
from pilot.store import tasks

KEY = bytes(range(32))
signer = Signer(KEY, "project-1")

# -- keys -----------------------------------------------------------------------------------------


def test_a_key_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        key = signing.create_key(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) == 32
    assert signing.load_key(path) == key
    assert signing.create_key(tmp_path / "other") != key


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key = signing.create_key(tmp_path / "key")
    with pytest.raises(ProjectExists, match="exists already"):
        signing.create_key(tmp_path / "key")
    assert signing.load_key(tmp_path / "key") == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_a_key_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    signing.create_key(path)
    path.chmod(mode)
    with pytest.raises(ProjectError, match=f"mode {mode:04o}.*chmod 600"):
        signing.load_key(path)


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "00" * 31, "00" * 33, "00" * 500, "ä"])
def test_a_file_that_holds_no_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold a key"):
        signing.load_key(path)


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"cannot read the project's key .*No such file"):
        signing.load_key(tmp_path / "key")
    with pytest.raises(ProjectError, match="cannot write the key"):
        signing.create_key(tmp_path / "nowhere" / "key")


def test_no_key_is_left_where_it_cannot_be_written(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from pilot.errors import ProjectError
from pilot.signing import create_key
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    create_key(Path(sys.argv[1]))
except ProjectError as exc:
    print(exc)
"""
    argv = [sys.executable, "-c", code, str(tmp_path / "key")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot write the key")
    assert list(tmp_path.iterdir()) == []


# -- signatures -----------------------------------------------------------------------------------

text = st.text()
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=10,
)


@given(plain, plain)
def test_a_signature_fits_its_fields_only(fields: Any, other: Any) -> None:
    signature = signer.sign("task", 1, fields)
    signer.verify("task", 1, fields, signature)
    assert len(signature) == 32
    if repr(other) != repr(fields):
        with pytest.raises(SignatureError):
            signer.verify("task", 1, [fields, other], signature)


@pytest.mark.parametrize(
    "wrong",
    [Signer(KEY[::-1], "project-1"), Signer(KEY, "project-2")],
    ids=["another key", "another project"],
)
def test_a_signature_fits_one_key_and_project_only(wrong: Signer) -> None:
    signature = signer.sign("task", 1, ["a"])
    with pytest.raises(SignatureError, match=r"the signature of a task of the project 'project-.' does not fit"):
        wrong.verify("task", 1, ["a"], signature)


def test_a_signature_fits_one_kind_and_version_only() -> None:
    signature = signer.sign("task", 1, ["a"])
    for kind, version in (("record", 1), ("task", 2)):
        with pytest.raises(SignatureError):
            signer.verify(kind, version, ["a"], signature)


@pytest.mark.parametrize("signature", [None, b"", "a" * 32, 5, b"\0" * 32, b"\0" * 64])
def test_what_is_no_signature_at_all(signature: object) -> None:
    with pytest.raises(SignatureError):
        signer.verify("task", 1, ["a"], signature)


@pytest.mark.parametrize("fields", [datetime.now(UTC), [b"x"], {(1, 2): 3}, {1, 2}])
def test_fields_that_are_not_plain(fields: object) -> None:
    with pytest.raises(SignatureError, match="not plain data"):
        signer.verify("task", 1, fields, b"\0" * 32)


def test_the_key_shows_nowhere() -> None:
    assert KEY.hex() not in repr(signer)
    assert "0, 1, 2" not in repr(signer)
    assert repr(KEY)[2:-1] not in repr(signer)


def test_a_signature_is_the_hmac_of_canonical_json() -> None:
    text = b'["project-1","task",1,["\xc3\xa9",2,null]]'
    assert signer.sign("task", 1, ["é", 2, None]) == hmac.digest(KEY, text, "sha256")


def test_signatures_do_not_change_between_releases() -> None:
    signature = signer.sign("task", 1, ["ä", 1, 1.5, None, True, {"b": 1, "a": 2}])
    assert signature.hex() == "088420deae83971b0397aec4fe740f9d719a30578ac4dcc2ed3c144c12f1be97"


# -- planted tampering ----------------------------------------------------------------------------


def blob(text: str) -> Blob:
    return Blob(text * 64, 10, None)


INPUTS = (Input("a", blob("1")), Input("b", blob("2"), (Link("b[0]", "parent", None), Link("b[1]", "parent", "xml"))))
FUNCTION = TaskSpec("task-1", Kind.FUNCTION, "f", INPUTS, function="f" * 64, resources=Resources.of(2, "1G", "5m"))
COMMAND = TaskSpec(
    "task-2", Kind.COMMAND, "c", (Input("stdin", blob("3")),),
    command=Command(("echo", "a"), env={"B": "1", "A": "2"}, files={"in": "stdin"}, outputs={"x": "*.x"}),
)  # fmt: skip


def stored(spec: TaskSpec) -> dict[str, Any]:
    """Return the task as it comes back from the database."""
    signature = signer.sign("task", SCHEMA, signing.task_fields(spec))
    doc = tasks.document(spec, [], client="c", seq=1, now=datetime.now(UTC), signature=signature)
    back: dict[str, Any] = bson.decode(bson.encode(doc))
    return back


def check(doc: dict[str, Any], inputs: tuple[Input, ...]) -> None:
    signer.verify("task", SCHEMA, signing.task_fields(doc, inputs), doc["signature"])


@pytest.mark.parametrize("spec", [FUNCTION, COMMAND, TaskSpec("t", Kind.FUNCTION, "n", fresh=True, waits="end")])
def test_a_task_verifies_as_it_comes_back(spec: TaskSpec) -> None:
    doc = stored(spec)
    check(doc, spec.inputs)
    check({**doc, "priority": 5, "retries": 7, "attempt": 3, "tags": ["x"], "name": "other"}, spec.inputs)


@pytest.mark.parametrize(
    "change",
    [{"_id": "task-3"}, {"function": "e" * 64}, {"function": None}, {"kind": "command"}, {"class": "c1"},
     {"fresh": True}, {"waits": "end"}, {"command": COMMAND.command.document() if COMMAND.command else None},
     {"signature": stored(COMMAND)["signature"]}, {"signature": None}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_an_edited_task_does_not_verify(change: dict[str, Any]) -> None:
    doc = stored(FUNCTION)
    with pytest.raises(SignatureError):
        check({**doc, **change}, INPUTS)


@pytest.mark.parametrize(
    "key_and_value",
    [("argv", ["rm", "-rf"]), ("shell", True), ("cwd", "/"), ("env", [["A", "2"]]), ("env", [["LD_PRELOAD", "x"]]),
     ("files", [["out", "stdin"]]), ("outputs", [])],
    ids=str,
)  # fmt: skip
def test_an_edited_command_does_not_verify(key_and_value: tuple[str, Any]) -> None:
    doc = stored(COMMAND)
    doc["command"][key_and_value[0]] = key_and_value[1]
    with pytest.raises(SignatureError):
        check(doc, COMMAND.inputs)


@pytest.mark.parametrize(
    "inputs",
    [INPUTS[::-1], INPUTS[:1], (), (Input("a", blob("2")), INPUTS[1]), (Input("c", blob("1")), INPUTS[1]),
     (INPUTS[0], INPUTS[1]._replace(links=())), (INPUTS[0], INPUTS[1]._replace(links=INPUTS[1].links[::-1])),
     (INPUTS[0], INPUTS[1]._replace(links=(Link("b[0]", "other", None), INPUTS[1].links[1])))],
)  # fmt: skip
def test_edited_arguments_do_not_verify(inputs: tuple[Input, ...]) -> None:
    with pytest.raises(SignatureError):
        check(stored(FUNCTION), inputs)


def test_a_payload_moved_to_another_task_does_not_verify() -> None:
    victim = stored(TaskSpec("task-9", Kind.FUNCTION, "g", INPUTS, function="e" * 64))
    planted = {**stored(FUNCTION), "_id": victim["_id"]}
    with pytest.raises(SignatureError):
        check(planted, INPUTS)


def test_a_document_that_lacks_something() -> None:
    doc = stored(FUNCTION)
    del doc["class"]
    with pytest.raises(KeyError):
        signing.task_fields(doc, INPUTS)


def by_value() -> Callable[[], int]:
    return lambda: 1


@pytest.mark.parametrize("function", [stored, by_value()], ids=["by name", "by value"])
def test_an_edited_function_does_not_verify(function: Any) -> None:
    code = describe(function)
    signature = signer.sign("function", SCHEMA, signing.function_fields(code))
    signer.verify("function", SCHEMA, signing.function_fields(code._replace(git=None, source="")), signature)
    for name in ("hash", "module", "qualname", "source_hash", "module_hash", "python"):
        with pytest.raises(SignatureError):
            signer.verify("function", SCHEMA, signing.function_fields(code._replace(**{name: "x"})), signature)
    with pytest.raises(SignatureError):
        signer.verify("function", SCHEMA, signing.function_fields(code._replace(pickle=blob("9"))), signature)


RECORD = {
    "_id": "task-1:2", "task": "task-1", "attempt": 2, "token": "t", "outcome": "succeeded",
    "task_signature": b"s" * 32,
    "inputs": [{"name": "a", "hash": "1" * 64, "size": 3}, {"name": "b", "hash": "2" * 64, "size": 3}],
    "outputs": [{"name": "result", "hash": "3" * 64, "size": 3, "value": 5}],
}  # fmt: skip


CHAIN = {"token": "t", "seq": 5, "prev": "6" * 64}


def fields(record: dict[str, Any], digest: str = "7" * 64, chain: dict[str, Any] = CHAIN) -> list[Any]:
    """Return what is signed of a record."""
    return signing.record_fields(record, digest, chain)


def test_the_digest_and_the_place_of_a_record_count() -> None:
    signature = signer.sign("record", SCHEMA, fields(RECORD))
    changes = {"token": "u"}, {"seq": 6}, {"prev": "7" * 64}
    for other in (fields(RECORD, "8" * 64), *(fields(RECORD, chain=CHAIN | change) for change in changes)):
        with pytest.raises(SignatureError):
            signer.verify("record", SCHEMA, other, signature)
    with pytest.raises(SignatureError, match="it is not one"):
        signing.record_fields(RECORD, None, None)


@pytest.mark.parametrize(
    "change",
    [{"task": "task-2"}, {"attempt": 3}, {"token": "u"}, {"outcome": "failed"}, {"task_signature": b"t" * 32},
     {"inputs": []}, {"inputs": RECORD["outputs"], "outputs": RECORD["inputs"]}, {"task_signature": "s" * 32},
     {"outputs": [{"name": "result", "hash": "4" * 64}]}, {"outputs": [{"name": "other", "hash": "3" * 64}]},
     {"outputs": {"object": "3" * 64, "count": 1}}, {"outputs": None}, {"inputs": [{}]}],
    ids=str,
)  # fmt: skip
def test_an_edited_record_does_not_verify(change: dict[str, Any]) -> None:
    signature = signer.sign("record", SCHEMA, fields(RECORD))
    signer.verify("record", SCHEMA, fields(bson.decode(bson.encode(RECORD))), signature)
    with pytest.raises(SignatureError):
        signer.verify("record", SCHEMA, fields({**RECORD, **change}), signature)


@pytest.mark.parametrize("missing", ["task", "attempt", "token", "outcome", "task_signature", "inputs", "outputs"])
def test_a_record_that_lacks_something(missing: str) -> None:
    with pytest.raises(SignatureError, match=f"it is not one: KeyError: '{missing}'"):
        fields({key: value for key, value in RECORD.items() if key != missing})


def test_a_list_that_became_an_object_is_covered_by_its_hash() -> None:
    record = {**RECORD, "inputs": {"object": "5" * 64, "count": 100_000}}
    signature = signer.sign("record", SCHEMA, fields(record))
    signer.verify("record", SCHEMA, fields(record), signature)
    swapped = {**record, "inputs": {"object": "6" * 64, "count": 100_000}}
    with pytest.raises(SignatureError):
        signer.verify("record", SCHEMA, fields(swapped), signature)


def test_a_chain_shows_what_was_removed_or_moved() -> None:
    def end(signatures: list[bytes]) -> str:
        last = ""
        for signature in signatures:
            last = signing.chain(last, signature)
        return last

    signatures = [signer.sign("record", SCHEMA, [n]) for n in range(4)]
    ends = {end(signatures), end(signatures[1:]), end(signatures[:-1]), end(signatures[::-1]), end([])}
    assert len(ends) == 5
    assert len(end(signatures)) == 64
