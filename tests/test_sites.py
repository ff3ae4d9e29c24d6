"""Site files: what they may say, how their errors read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pilot import limits
from pilot.config import create_project
from pilot.errors import ConfigError
from pilot.site_files import load_site, merged, site_files, site_names
from pilot.sites import PARTS, Site, launchers

SHIPPED = Path(__file__).parent.parent / "site-configs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a site file that is right."""
    path = tmp_path / "mine.yaml"
    path.write_text((SHIPPED / "local.yaml").read_text())
    return path


def _with(file: Path, **changes: Any) -> str:
    data = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**data, **changes}))
    return str(file)


@pytest.mark.parametrize("name", site_names())
def test_shipped_files_are_right(name: str) -> None:
    site = load_site(name)
    assert site.name == name
    assert site.default_program in site.programs
    assert load_site(str(SHIPPED / f"{name}.yaml")) == site


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
    ({"slot": 3}, r"'slot' is 3: there is no such key here; did you mean 'slots'\?"),
    ({"node": {"account": "m1"}}, r"'node.account' is 'm1': there is no such key here; did you mean 'account_"),
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


def test_all_that_is_wrong_is_told_up_to_five(file: Path) -> None:
    wrong = {"slot": 3, "slots": 0, "start_s": "x", "node": {"memory": [], "gpus": -1}, "pretend_nodes": 0}
    with pytest.raises(ConfigError) as caught:
        load_site(_with(file, **wrong))
    told = str(caught.value)
    assert told.count(str(file)) == 1
    assert "'node.memory' is []: " in told
    assert told.count("; ") - told.count("; did you mean") == 5
    assert told.endswith("; and 1 more")


def test_files_that_are_no_yaml(file: Path) -> None:
    file.write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_site(str(file))
    file.write_text("just words")
    with pytest.raises(ConfigError, match="is 'just words': expected keys and values"):
        load_site(str(file))
    file.write_text("name: empty")
    with pytest.raises(ConfigError, match="'description' is missing; 'documentation' is missing"):
        load_site(str(file))


# -- where they are searched for, and what they extend ---------------------------------------------


class Folders:
    """A project with site files of its own, and a folder named by ``$PILOT_SITES``."""

    def __init__(self, root: Path, further: Path) -> None:
        self.project = create_project(root)
        self.own = self.project.sites_folder
        self.own.mkdir()
        self.further = further

    def load(self, name: str) -> Site:
        return load_site(name, self.project)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Return the two folders, empty."""
    further = tmp_path / "further"
    further.mkdir()
    monkeypatch.setenv("PILOT_SITES", f"{tmp_path / 'not there'}:{further}")
    return Folders(tmp_path, further)


def test_the_first_of_a_name_on_the_path_counts(folders: Folders) -> None:
    for number, folder in enumerate((folders.own, folders.further), 1):
        (folder / "mine.yaml").write_text(f"extends: slurm\nslots: {number}\n")
        assert folders.load("mine").slots == number
        assert folders.load("mine").name == "mine"
        assert site_names(folders.project).count("mine") == 1
    assert load_site("mine").slots == 2


def test_single_keys_of_a_shipped_site_are_changed(folders: Folders) -> None:
    (folders.own / "slurm.yaml").write_text("extends: slurm\nbatch: {queue: long, options: [--constraint=cpu]}\n")
    (folders.further / "slurm.yaml").write_text("extends: slurm\nbatch: {account: m1}\n")
    site, shipped = folders.load("slurm"), load_site(str(SHIPPED / "slurm.yaml"))
    assert site.batch is not None
    assert (site.batch.queue, site.batch.account, site.batch.options) == ("long", "m1", ("--constraint=cpu",))
    assert (site.launcher, site.node, site.name) == (shipped.launcher, shipped.node, "slurm")
    assert [file.path.parent for file in site_files("slurm", folders.project)][:2] == [folders.further, folders.own]


def test_files_that_are_only_extended_are_no_sites(folders: Folders) -> None:
    (folders.own / "_common.yaml").write_text("extends: slurm\nslots: 5\n")
    (folders.own / "mine.yaml").write_text("extends: _common\nname: mine\n")
    assert folders.load("mine").slots == 5
    assert "_common" not in site_names(folders.project)


def test_errors_name_the_file_in_which_the_value_stands(folders: Folders) -> None:
    (folders.own / "_common.yaml").write_text("extends: slurm\nslots: 0\n")
    (folders.own / "mine.yaml").write_text("extends: _common\nbatch: {quueue: x}\n")
    with pytest.raises(ConfigError) as caught:
        folders.load("mine")
    assert re.search(r"site file '\S+/_common\.yaml': 'slots' is 0: Input should be gr", str(caught.value))
    assert re.search(r"site file '\S+/mine\.yaml': 'batch\.quueue' is 'x': .* mean 'queue'", str(caught.value))


def test_a_circle_is_refused(folders: Folders) -> None:
    (folders.own / "a.yaml").write_text("extends: b\n")
    (folders.own / "b.yaml").write_text("extends: a\n")
    with pytest.raises(ConfigError, match=r"a\.yaml' extends itself in a circle: \S+a\.yaml → \S+b\.yaml → \S+a\.yaml"):
        folders.load("a")


@pytest.mark.parametrize(
    ("base", "words"), [("a", "'a': expected another site"), ("nix", "'nix'"), ("[b]", "the name of")]
)
def test_what_is_extended_has_to_be_there(folders: Folders, base: str, words: str) -> None:
    (folders.own / "a.yaml").write_text(f"extends: {base}\n")
    with pytest.raises(ConfigError, match=rf"a\.yaml': 'extends' is .*{words}"):
        folders.load("a")


def test_sites_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no site 'slrum'; did you mean 'slurm'\? `pilot site list` shows all"):
        load_site("slrum")
    with pytest.raises(ConfigError, match=r"no site 'nowhere'; `pilot site list`"):
        load_site("nowhere")
    with pytest.raises(ConfigError, match=r"cannot read the site file '.*none\.yaml': .*No such file"):
        load_site(str(tmp_path / "none.yaml"))


# -- documentation --------------------------------------------------------------------------------


def _fields() -> Iterator[tuple[str, Any]]:
    for model in PARTS:
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field


def test_every_key_is_described_here_and_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "concepts" / "site.md").read_text()
    for name, field in _fields():
        assert field.description, name
        assert f"`{name.partition('.')[2]}`" in page, name


# -- what is shipped ------------------------------------------------------------------------------

MACHINES = sorted(set(site_names()) - {"local", "pbs", "slurm"})
"""Sites that are one machine."""


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_files_are_short_and_name_their_schema(name: str) -> None:
    lines = (SHIPPED / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../docs/site.schema.json"
    assert lines[1].startswith("# ")
    assert len(lines) <= 65
    assert max(map(len, lines)) <= 130


@pytest.mark.parametrize("name", MACHINES)
def test_machines_say_where_they_are_from_and_what_is_not_known(name: str) -> None:
    site, data = load_site(name), merged(site_files(name))
    assert site.verified is not None
    assert "https://" in site.verified.source
    assert site.documentation.startswith("https://")
    assert site.contact.startswith("the site's help desk, https://")
    assert site.batch is not None
    assert site.batch.account_required
    assert site.batch.queue in site.batch.queues
    assert {"launcher", "programs"} <= set(site.unverified)  # nobody has started a pool there yet
    for key in site.unverified:
        part: Any = data
        for step in key.split("."):
            assert step in part, f"{key} is unverified, but is no key of {name}"
            part = part[step]


@pytest.mark.parametrize("name", MACHINES)
def test_machines_leave_placement_to_the_pilot(name: str) -> None:
    site = load_site(name)
    for command in (site.launcher.command, *(program.launcher for program in site.programs.values())):
        words = " ".join(command)
        assert re.search("--cpu-bind[= ]none|-bind-to none", words)
        assert "--exact" not in words
        assert "srun" not in words or {"-K1", "--overlap"} <= set(command)
    assert site.node.cpu_order is None or len(site.node.cpu_order) == site.node.cores
    limits.check(site, max(2, site.batch.queues[site.batch.queue].min_nodes), 3600, site.batch.queue, "a")


CRAY = ["alps-daint", "frontier", "lumi-c", "lumi-g", "perlmutter-cpu", "perlmutter-gpu", "setonix", "setonix-gpu"]
PALS = ["aurora", "derecho", "polaris"]


@pytest.mark.parametrize("name", [*CRAY, *PALS])
def test_machines_with_cxi_load_their_own_mpi_and_start_programs_where_no_pool_is(name: str) -> None:
    site = load_site(name)
    assert site.batch is not None
    assert site.batch.env["MPI4PY_LIBMPI"] == "libmpi.so.12"
    assert site.launcher.programs_beside_pool == "whole_node_free"
    assert (site.launcher.one_node == ("--network=single_node_vni",)) == (name in CRAY)
