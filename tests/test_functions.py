"""Identity of functions, getting them back in another process, and arguments by name."""

from __future__ import annotations

import functools
import gc
import importlib
import math
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pilot import functions, source
from pilot.calls import bind
from pilot.errors import CodeChanged, DecodingError, EncodingError, ObjectCorrupt, PythonMismatch
from pilot.functions import PYTHON, StaleModule, describe, load
from pilot.model import FunctionCode

ROOT = Path(__file__).parent.parent


class Task:
    """As `pilot.task` makes it."""

    __pilot_task__ = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any) -> Any:
        raise AssertionError("the function itself was wanted")


def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return "wrapped", function(*args)

    return wrapper


def plain(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


@Task
def task(a: int) -> int:
    return a * 2


@decorate
def decorated(a: int) -> int:
    return a * 3


@Task
@decorate
def both(a: int) -> int:
    return a * 4


class Model:
    def __init__(self, n: int = 0) -> None:
        self.n = n

    def method(self, a: int) -> int:
        return self.n + a

    @classmethod
    def make(cls, a: int) -> tuple[str, int]:
        return cls.__name__, a

    @staticmethod
    def static(a: int) -> int:
        return -a

    def __call__(self, a: int) -> int:
        return self.n * a


CONSTANT = 7


def through_constant(a: int) -> int:
    return CONSTANT + a


# -- every kind of callable -----------------------------------------------------------------------

BY_NAME: list[tuple[Any, str, Any]] = [
    (plain, "plain", 7),
    (task, "task", 10),
    (task.function, "task", 10),
    (decorated, "decorated", ("wrapped", 15)),
    (decorated.__wrapped__, "decorated.__wrapped__", 15),  # type: ignore[attr-defined]
    (both, "both", ("wrapped", 20)),
    (both.function.__wrapped__, "both.__wrapped__", 20),  # type: ignore[attr-defined]
    (Model.make, "Model.make", ("Model", 5)),
    (Model.static, "Model.static", -5),
    (math.sqrt, "sqrt", math.sqrt(5)),
    (len, "len", None),
    (os.path.basename, "basename", None),
    (np.linalg.norm, "norm", 5.0),
]


@pytest.mark.parametrize(("function", "qualname", "expected"), BY_NAME, ids=lambda x: x if isinstance(x, str) else "")
def test_by_name(function: Any, qualname: str, expected: Any) -> None:
    code = describe(function)
    assert code.pickle is None
    assert code.qualname == qualname
    assert code.python == PYTHON
    loaded = load(code)
    assert loaded is functions._unwrap_task(function) or loaded == function
    if expected is not None:
        assert loaded(5) == expected


def local(n: int) -> Callable[[int], int]:
    def inner(a: int) -> int:
        return a + n

    return inner


BY_VALUE: list[tuple[Any, str | None, Any]] = [
    (lambda a: a + 1, "<lambda>", 6),
    (local(10), "local.<locals>.inner", 15),
    (functools.partial(plain, b=3), "functools.partial(plain)", 8),
    (functools.partial(task, 3), "functools.partial(task)", None),
    (Model(2).method, "Model.method", 7),
    (Model(2), "Model.__call__", 10),
    ("abc".replace, "str.replace", None),
    (np.sin, None, math.sin(5)),
]


@pytest.mark.parametrize(("function", "qualname", "expected"), BY_VALUE, ids=lambda x: x if isinstance(x, str) else "")
def test_by_value(function: Any, qualname: str | None, expected: Any) -> None:
    code = describe(function)
    if qualname is not None:
        assert code.qualname == qualname
        assert code.pickle is not None
        assert code.pickle.data is not None
        with pytest.raises(ObjectCorrupt, match="does not have the hash"):
            load(code, code.pickle.data + b" ")
        assert callable(load(code._replace(pickle=code.pickle._replace(data=None)), code.pickle.data))
    if expected is not None:
        assert load(code)(5) == pytest.approx(expected)


def test_what_is_kept_to_read_in_five_years() -> None:
    code = describe(plain)
    assert code.module == __name__
    assert code.source == 'def plain(a: int, b: int = 2) -> int:\n    """Add."""\n    return a + b\n'
    assert code.module_hash == source.file_digest(__file__)
    assert describe(Model.make).source.startswith("@classmethod\ndef make")
    assert describe(Model(1)).source.startswith("class Model:")
    assert describe(functools.partial(plain, 1)).source == code.source
    assert describe(math.sqrt).source == ""
    assert describe(math.sqrt).source_hash == ""
    assert all(len(h) == 64 for h in (code.hash, code.source_hash, code.module_hash))


@pytest.mark.parametrize("value", [threading.Lock(), (i for i in ())], ids=["lock", "generator"])
def test_what_cannot_be_sent(value: Any) -> None:
    with pytest.raises(EncodingError, match=r"the function 'test_what_cannot_be_sent.<locals>.<lambda>' cannot be p"):
        describe(lambda: value)


def test_a_pickle_that_is_no_function() -> None:
    code = describe(lambda: 1)
    from pilot.values import encode

    five = encode(5)
    assert code.pickle is not None
    with pytest.raises(DecodingError, match="is not a function here but int"):
        load(code._replace(pickle=code.pickle._replace(hash=five.hash, data=five.data)))


def test_another_python() -> None:
    code = describe(plain)._replace(python="3.9")
    with pytest.raises(PythonMismatch, match=rf"submitted with Python 3\.9 and this is Python {PYTHON}: start the pil"):
        load(code)


# -- identity -------------------------------------------------------------------------------------


def test_identity_depends_on_what_runs() -> None:
    def make(default: int, closed: int) -> Callable[..., int]:
        def inner(a: int, b: int = default) -> int:
            return a + b + closed

        return inner

    hashes = {
        describe(f).hash for f in (make(1, 1), make(2, 1), make(1, 2), plain, task, local(1), math.sqrt, math.sin)
    }
    assert len(hashes) == 8
    assert describe(task).hash == describe(task.function).hash
    assert describe(make(1, 1)).hash == describe(make(1, 1)).hash


def test_repeated_descriptions_are_remembered() -> None:
    inner = local(3)
    for function in (plain, task, inner, decorated):
        assert describe(function) is describe(function)


def test_a_described_function_can_be_collected() -> None:
    def make() -> Callable[[int], int]:
        def recursive(a: int) -> int:
            return 1 if a == 0 else recursive(a - 1)

        return recursive

    function = make()
    describe(function)
    alive = weakref.ref(function)
    del function
    gc.collect()
    assert alive() is None


def script(text: str) -> dict[str, Any]:
    """Run text as a notebook would; return its globals."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(text), names)
    return names


def test_a_notebook_that_changes_a_global_or_a_helper_is_noticed() -> None:
    names = script("""
        import math
        N = 1
        TABLE = [1]
        def helper(a): return a + N
        def twice(a): return helper(a) * 2
        def look(a): return TABLE[0] + a
        def calls_itself(n): return 0 if n == 0 else calls_itself(n - 1)
        """)
    twice, look = names["twice"], names["look"]
    assert describe(twice) is describe(twice)
    assert describe(names["calls_itself"]) is describe(names["calls_itself"])
    assert load(describe(twice))(1) == 4
    names["N"] = 2
    assert load(describe(twice))(1) == 6
    exec("def helper(a): return 100", names)
    assert load(describe(twice))(1) == 200
    assert load(describe(look))(1) == 2
    names["TABLE"][0] = 5  # changed in place: nothing was rebound
    assert load(describe(look))(1) == 6
    names["N"] = True
    before = describe(names["calls_itself"]).hash
    exec("def calls_itself(n): return 1", names)
    assert describe(names["calls_itself"]).hash != before


def test_a_notebook_that_redefines_a_function_is_noticed() -> None:
    names = script("def f(): return 1")
    first = describe(names["f"])
    exec("def f(): return 2", names)
    second = describe(names["f"])
    assert first.hash != second.hash
    assert (load(first)(), load(second)()) == (1, 2)
    names["f"].__code__ = (lambda: 3).__code__  # as IPython's autoreload does
    assert load(describe(names["f"]))() == 3


def test_a_module_without_a_file_goes_by_value() -> None:
    module = ModuleType("made_up_module")
    sys.modules["made_up_module"] = module
    try:
        exec("def helper(): return 5\ndef f(): return helper()", module.__dict__)
        code = describe(module.f)
    finally:
        del sys.modules["made_up_module"]
    assert code.pickle is not None
    assert load(code)() == 5


# -- modules that change --------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a module `library_under_test` on the path; yield its file."""
    path = tmp_path / "library_under_test.py"
    path.write_text("def f(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    yield path
    sys.modules.pop("library_under_test", None)
    functions._imported.pop("library_under_test", None)


def change(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns + 1_000_000))


def library_code() -> FunctionCode:
    return describe(importlib.import_module("library_under_test").f)


def forget() -> None:
    del sys.modules["library_under_test"]


def test_a_module_that_changed_is_refused_before_it_runs(library: Path) -> None:
    code = library_code()
    forget()
    change(library, "raise SystemExit('this must not run')\n")
    with pytest.raises(
        CodeChanged, match=rf"'library_under_test.f' is not the one .*'{library}'; put the old text back"
    ):
        load(code)
    assert "library_under_test" not in sys.modules


def test_an_unchanged_module_loads(library: Path) -> None:
    code = library_code()
    forget()
    assert load(code)() == 1
    assert load(code)() == 1


def test_an_edit_between_two_submits_is_another_function(library: Path) -> None:
    code = library_code()
    assert library_code() is code
    change(library, "def f(): return 1  # and a remark\n")
    again = library_code()
    assert again.hash != code.hash
    assert again.module_hash == source.file_digest(str(library))


def test_a_process_that_imported_the_old_text_says_so(library: Path) -> None:
    old = library_code()
    forget()
    assert load(old)() == 1
    change(library, "def f(): return 2\n")
    new = library_code()  # a client in another process would say the same
    with pytest.raises(StaleModule, match="run the task in a new process"):
        load(new)
    with pytest.raises(CodeChanged):
        load(old)


def test_a_module_that_somebody_else_imported_is_trusted_only_if_it_is_old(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = library_code()
    with pytest.raises(StaleModule):  # the file is younger than this process: it may have been imported before
        load(code)
    monkeypatch.setattr(functions, "_started_ns", library.stat().st_ctime_ns + 1)
    assert load(code)() == 1


def test_a_module_that_is_not_there_or_does_not_import(library: Path) -> None:
    code = library_code()
    forget()
    with pytest.raises(DecodingError, match=r"needs the module 'nowhere\.at_all', whose import failed: ModuleNotFound"):
        load(code._replace(module="nowhere.at_all"))
    with pytest.raises(DecodingError, match="has no 'g' here"):
        load(code._replace(qualname="g"))
    forget()
    change(library, "1 / 0\n")
    with pytest.raises(DecodingError, match="import failed: ZeroDivisionError"):
        load(code._replace(module_hash=source.file_digest(str(library))))


def test_an_old_function_of_a_reloaded_module_goes_by_value(library: Path) -> None:
    module = importlib.import_module("library_under_test")
    old = module.f
    change(library, "def f(): return 2\n")
    importlib.reload(module)
    assert describe(module.f).pickle is None
    code = describe(old)
    assert code.pickle is not None
    assert load(code)() == 1


CHILD = """
import pickle, sys
from pilot.functions import load
from pilot.calls import call
code, named = pickle.load(sys.stdin.buffer)
print(repr(call(load(code), named)))
"""


@pytest.mark.parametrize("function", [plain, task, both, local(3), functools.partial(plain, b=5), Model(2).method])
def test_in_another_process(function: Any) -> None:
    import pickle

    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    named = bind(function, (4,), {})
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHILD], input=pickle.dumps((describe(function), named)), env=env,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == repr(functions._unwrap_task(function)(4))


def test_a_script_keeps_its_functions_by_value(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from pilot.functions import describe\n"
        "import pickle, sys\n"
        "def helper(a): return a + 1\n"
        "def f(a): return helper(a)\n"
        "sys.stdout.buffer.write(pickle.dumps((describe(f), [('a', 1)])))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, tmp_path / "script.py"], env=env, capture_output=True, check=True).stdout
    done = subprocess.run([sys.executable, "-P", "-c", CHILD], input=out, env=env, capture_output=True, check=False)
    assert done.stdout == b"2\n", done.stderr.decode()


# -- git ------------------------------------------------------------------------------------------


def git(directory: Path, *argv: str) -> str:
    name = ["-c", "user.name=x", "-c", "user.email=x@y"]
    done = subprocess.run(["git", *name, *argv], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a repository with one commit."""
    monkeypatch.setattr(source, "_git_states", {})
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_git_state(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "untracked").write_text("x")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    assert source.git_state(str(repository / "a.py")) == {"commit": commit, "dirty": False}
    (repository / "a.py").write_text("2\n")
    assert source.git_state(str(repository / "a.py")) == {"commit": commit, "dirty": False}  # as first seen
    source._git_states.clear()
    assert source.git_state(str(repository)) == {"commit": commit, "dirty": True}


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_git_states", {})
    assert source.git_state(str(tmp_path)) is None
    git(tmp_path, "init", "-q")
    source._git_states.clear()
    assert source.git_state(str(tmp_path)) is None  # no commit yet
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(source, "_GIT_TIMEOUT_S", 0.2)
    source._git_states.clear()
    assert source.git_state(str(tmp_path)) is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    source._git_states.clear()
    assert source.git_state(str(tmp_path)) is None


def test_git_belongs_to_ones_own_code_only() -> None:
    assert describe(np.linalg.norm).git is None
    assert describe(math.sqrt).git is None


def test_files_are_read_again_only_when_they_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert source.file_digest(str(path)) == ""
    path.write_text("1")
    first = source.file_digest(str(path))
    assert source.file_digest(str(path)) == first
    change(path, "2")
    assert source.file_digest(str(path)) != first
