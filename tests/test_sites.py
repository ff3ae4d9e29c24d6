"""Site files: what they may say, how their errors read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pilot.config import load_site
from pilot.errors import ConfigError
from pilot.sites import Node, Program, Site, launchers

SHIPPED = sorted((Path(__file__).parent.parent / "site-configs").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a site file that is right."""
    path = tmp_path / "mine.yaml"
    path.write_text(SHIPPED[0].read_text())
    return path


def _with(file: Path, **changes: Any) -> str:
    data = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**data, **changes}))
    return str(file)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_right(path: Path) -> None:
    site = load_site(path.stem)
    assert site.name == path.stem
    assert site.default_program in site.programs
    assert load_site(str(path)) == site


def test_a_file_of_ones_own_is_given_by_its_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with(file, name="mine", slots=3)
    monkeypatch.chdir(file.parent)
    assert load_site(str(file)) == load_site("mine.yaml") == load_site("./mine.yaml")
    assert load_site("mine.yaml").slots == 3


def test_a_node_may_be_described(file: Path) -> None:
    node = {
        "cores": 64, "memory": "128G", "gpus": 4, "gpu_variable": "ROCR_VISIBLE_DEVICES", "cpu_order": "0-2,8,4-5",
    }  # fmt: skip
    site = load_site(_with(file, node=node, pretend_nodes=2, start_s=10))
    assert site.node.memory_bytes == 128 << 30
    assert site.node.gpu_ids == ("0", "1", "2", "3")
    assert site.node.cpu_order == (0, 1, 2, 8, 4, 5)
    assert launchers(site)["gpu_variable"] == "ROCR_VISIBLE_DEVICES"
    assert launchers(site)["start_s"] == 10


def test_gpus_may_have_names_of_their_own(file: Path) -> None:
    assert load_site(_with(file, node={"gpus": 2, "gpu_names": ["0.0", "0.1"]})).node.gpu_ids == ("0.0", "0.1")


def test_job_steps_may_be_limited(file: Path) -> None:
    srun = {"launcher": ["srun", "-n", "{ranks}"], "step": "always"}
    programs = {"mpich": {"launcher": ["mpiexec"], "step": "several_nodes"}, "cray": {"launcher": ["aprun"]}}
    site = load_site(_with(file, programs=programs, max_concurrent_steps=50))
    assert site.steps == {"several_nodes"}
    assert load_site(_with(file, programs=programs | {"srun": srun})).steps == {"several_nodes", "always"}


def test_what_is_absent_is_discovered() -> None:
    node = load_site().node
    assert (node.cores, node.memory_bytes, node.gpus, node.gpu_ids, node.cpu_order) == (None, None, 0, (), None)
    assert launchers(load_site())["gpu_variable"] == ""


_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"slot": 3}, r"'slot' is 3: Extra inputs are not permitted"),
    ({"slots": 0}, r"'slots' is 0: Input should be greater than or equal to 1"),
    ({"node": {"memory": "many"}}, r"'node.memory' is 'many': .*is not a size above zero; write e.g."),
    ({"node": {"gpu_variable": "GPUS"}}, r"'node.gpu_variable' is 'GPUS': Input should be 'CUDA_VISIBLE_DEVICES', "),
    ({"node": {"gpus": 2, "gpu_names": ["a"]}}, r"'node' is .* gpu_names has 1 names, expected one for each of the 2"),
    ({"node": {"cpu_order": "0-x"}}, r"'node.cpu_order' is '0-x': .*expected CPU ids, a list of numbers or ranges"),
    ({"node": {"cpu_order": [1, 1]}}, r"'node.cpu_order' is \[1, 1\]: .*expected CPU ids of at least 0, each once"),
    ({"default_program": "lam"}, r"default_program is 'lam', expected one of \['mpich', 'openmpi'\]"),
    (
        {"programs": {"x": {"launcher": ["run", "{cores}"]}}},
        r"programs\.x\.launcher\.1' is '{cores}': .* other than {hostf",
    ),
    ({"programs": {"x": {"launcher": []}}}, r"'programs\.x\.launcher' is \[\]: Tuple should have at least 1 item"),
    (
        {"programs": {"x": {"launcher": ["a"], "host_line": "{h}"}}},
        r"'programs\.x\.host_line' is '{h}': .* other than {host}",
    ),
    ({"max_concurrent_steps": 5}, r"max_concurrent_steps is 5, but no flavour under 'programs' takes a step"),
    ({"start_s": 0}, r"'start_s' is 0: Input should be greater than 0"),
]


@pytest.mark.parametrize(("changes", "words"), _WRONG, ids=lambda one: str(one)[:40])
def test_errors_name_file_key_value_and_what_was_expected(file: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^site file '{re.escape(str(file))}': .*{words}"):
        load_site(_with(file, **changes))


def test_sites_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no site 'nowhere'; there are: .*local.*; a file of your own is given"):
        load_site("nowhere")
    with pytest.raises(ConfigError, match=r"cannot read the site file '.*none\.yaml': .*No such file"):
        load_site(str(tmp_path / "none.yaml"))


def test_files_that_are_no_yaml(file: Path) -> None:
    file.write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_site(str(file))
    file.write_text("just words")
    with pytest.raises(ConfigError, match="'just words'"):
        load_site(str(file))


def _fields() -> Iterator[tuple[str, Any]]:
    models: list[type[BaseModel]] = [Site, Node, Program]
    for model in models:
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field


def test_every_key_is_described_here_and_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "concepts" / "site.md").read_text()
    for name, field in _fields():
        assert field.description, name
        assert f"`{name.partition('.')[2]}`" in page, name
