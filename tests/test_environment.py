"""What is kept of a pool's environment, and that no secret is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot import values
from pilot.environment import HIDDEN, Difference, capture, chosen, container, differences, gpus, without_secrets
from pilot.site_files import digest_of, load_site

SECRETS = {
    "a URI with a password": "mongodb://pilot:hunter2@db.example.org/x",
    "a URI with a token as user": "https://ghp_0123456789abcdefghij0123456789abcdef@github.com/a/b",
    "an AWS key id": "AKIAIOSFODNN7EXAMPLE",
    "an AWS secret": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY0",
    "a GitHub token": "ghp_0123456789abcdefghij0123456789abcdef",
    "a GitLab token": "glpat-0123456789abcdefghij",
    "a web token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "hexadecimal": "0123456789abcdef0123456789abcdef",
    "base64": "dGhpcyBpcyBhIHNlY3JldCBvZiBtaW5lIGFuZCBub3QgeW91cnM=",
    "a parameter": "https://example.org/data?token=abc123",
    "an assignment": "user=me;password=hunter2",
    "a header": "Authorization: Bearer abcdefgh12345678",
    "a key in PEM": "-----BEGIN PRIVATE KEY-----\nMIIE",
}

HARMLESS = [
    "/usr/local/bin:/usr/bin", "close", "4,2", "GOMP_SPINCOUNT=3", "cores", "0-3,8-11", "C.UTF-8",
    "/opt/cray/pe/mpich/8.1.27/ofi/gnu/9.1/lib", "/data/My_Very-Long_Folder_Name_with_many_words_v2/lib",
    "/spack/opt/gcc-12.2.0/openmpi-4.1.5-abcdefghijklmnopqrstuvwxyz234567/bin",
    "/nix/store/0c5b4d7hwz5abcdefghijklmnopqrstu-python3-3.11/bin", "tcp,self", "https://example.org/data", "",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
@pytest.mark.parametrize("name", ["PATH", "PYTHONPATH", "ESPRESSO_PSEUDO", "OMP_TOOL_LIBRARIES"])
def test_planted_secrets(name: str, secret: str) -> None:
    for value in (secret, f"/usr/bin:{secret}:/bin", f"{secret}:/bin"):
        kept = chosen({name: value})[name]
        assert HIDDEN in kept
        words = [
            word for word in secret.replace("=", " ").replace(":", " ").replace("@", " ").split() if len(word) > 15
        ]
        assert not [word for word in [secret, "hunter2", "abc123", *words] if word in kept]


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "MPICH_TOKEN", "OMP_PASSWORD", "ESPRESSO_API_KEY", "ASE_DB_PASSWD", "UCX_COOKIE",
     "FI_AUTH_KEY", "CUDA_SESSION", "HOME", "USER", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
     "OMPI_MCA_orte_hnp_uri", "OMPI_MCA_ess_base_jobid"],
)  # fmt: skip
def test_variables_that_are_not_kept(name: str) -> None:
    assert chosen({name: "x", "OMP_NUM_THREADS": "4"}) == {"OMP_NUM_THREADS": "4"}


@pytest.mark.parametrize("value", HARMLESS)
def test_what_is_no_secret_stays(value: str) -> None:
    assert without_secrets(value) == value
    assert chosen({"MODULEPATH": value}) == {"MODULEPATH": value}


def test_of_a_list_only_what_looks_like_one_is_hidden() -> None:
    secret = SECRETS["hexadecimal"]
    assert without_secrets(f"/usr/bin:/tmp/{secret}/bin:/bin") == "/usr/bin:***:/bin"
    assert container({"APPTAINER_CONTAINER": "docker://me:hunter2@registry/x"}) == HIDDEN
    assert container({"APPTAINER_CONTAINER": "/images/qe.sif"}) == "/images/qe.sif"


def test_no_planted_secret_is_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {f"OMP_{number}": secret for number, secret in enumerate(SECRETS.values())}
    text = repr(capture("MPICH", {**planted, "MY_TOKEN": "tell-nobody", "LANG": "C"}))
    assert not [secret for secret in [*SECRETS.values(), "tell-nobody", "hunter2"] if secret in text]
    assert text.count(HIDDEN) == len(planted)


def test_what_is_captured() -> None:
    site = load_site("local")
    variables = {"LOADEDMODULES": "gcc/12:openmpi/4.1", "OMP_PLACES": "cores"}
    found = capture("MPICH 5", variables, "local", digest_of(site))
    assert found["modules"] == ["gcc/12", "openmpi/4.1"]
    assert found["variables"] == {"OMP_PLACES": "cores"}
    assert "numpy" in found["packages"]
    assert found["_id"] == values.encode({key: value for key, value in found.items() if key != "_id"}).hash
    assert found == capture("MPICH 5", variables, "local", digest_of(site))
    assert len(found["site_digest"]) == 64
    assert digest_of(load_site("slurm")) != found["site_digest"] == digest_of(load_site("local"))


def test_differences() -> None:
    then = {"_id": "1", "packages": {"a": "1", "b": "1"}, "modules": ["x"], "site": "s"}
    now = {"_id": "2", "packages": {"a": "2", "c": "1"}, "modules": ["x", "y"], "site": "s"}
    assert differences(then, now) == [
        Difference("modules", ["x"], ["x", "y"]), Difference("packages.a", "1", "2"),
        Difference("packages.b", "1", None), Difference("packages.c", None, "1"),
    ]  # fmt: skip
    assert differences(then, then) == []


# -- GPUs: files as drivers show them ---------------------------------------------------------------


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_nvidia(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / f"proc/driver/nvidia/gpus/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 112\n")
    write(
        tmp_path, proc__driver__nvidia__version="NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat\nGCC\n"
    )
    assert gpus(tmp_path) == {"gpus": ["NVIDIA A100-SXM4-40GB"] * 2, "gpu_driver": "535.104.05"}


def test_amd_intel_and_none(tmp_path: Path) -> None:
    assert gpus(tmp_path) == {}
    card = "sys__class__drm__card"
    write(tmp_path, **{f"{card}0__device__vendor": "0x1a03\n", f"{card}0__device__device": "0x2000\n"})  # a console
    assert gpus(tmp_path) == {}
    write(tmp_path, **{f"{card}1__device__vendor": "0x1002\n", f"{card}1__device__product_name": "AMD MI250X\n"})
    write(tmp_path, **{f"{card}2__device__vendor": "0x8086\n", f"{card}2__device__device": "0x0bd5\n"})
    write(tmp_path, sys__module__amdgpu__version="6.1.5\n")
    assert gpus(tmp_path) == {"gpus": ["AMD MI250X", "Intel 0x0bd5"], "gpu_driver": "6.1.5"}
