"""The repository's own promises: layout, packaging, sizes, links in the documentation."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINE_LIMIT = 500

TEXT = {"", ".cfg", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}


def repository_files() -> list[Path]:
    """Return every file that is, or would be, under version control; links are not followed."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"not a git checkout: {done.stderr.strip()}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.mark.parametrize(
    ("link", "target"),
    [("executors", "../executors"), ("store", "../store"), ("site_configs", "../site-configs")],
)
def test_links_are_links(link: str, target: str) -> None:
    assert os.readlink(ROOT / "pilot" / link) == target


def test_packages_are_complete() -> None:
    """What setup.cfg forgets works from a checkout and is missing from the wheel."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    walk = os.walk(ROOT / "pilot", followlinks=True)
    folders = [Path(folder) for folder, _, files in walk if any(name.endswith(".py") for name in files)]
    names = [".".join(folder.relative_to(ROOT).parts) for folder in folders]
    assert sorted(setup["options"]["packages"].split()) == sorted(names)
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_modules_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in repository_files()
        if path.suffix == ".py"
    }
    assert {name: lines for name, lines in lengths.items() if lines > LINE_LIMIT} == {}


def test_no_path_of_one_machine() -> None:
    """What leads to somebody's home, or out of the repository to a neighbour, leads nowhere for others."""
    files = [path for path in repository_files() if path.suffix in TEXT]
    known = {part for path in repository_files() for part in path.relative_to(ROOT).parts}
    private = re.compile(rf"(?<![\w.])/(?:home|root|Users)/\w+|{re.escape(str(ROOT))}(?![\w-])")
    climbing = re.compile(r"(?:\.\./)+([\w-][\w.-]*)")
    found = []
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            astray = [match[0] for match in climbing.finditer(line) if match[1] not in known]
            found += [f"{path.relative_to(ROOT)}:{number}: {it}" for it in (*private.findall(line), *astray)]
    assert found == []


def anchors(page: Path) -> set[str]:
    """Return the anchors that a forge gives the headings of a Markdown page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.docs
def test_links_in_the_documentation_lead_somewhere() -> None:
    broken = []
    for page in repository_files():
        if page.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            astray = not there.is_relative_to(ROOT) or not there.exists()
            if astray or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
