"""What reads documents of PROV and RO-Crates back, and judges them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import rocrate
from prov.model import ProvDocument

from tests import conftest

CONTEXT = Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld"


def read_back(document: Any) -> Any:
    """Check that a document is read back as it was from PROV-JSON and from PROV-N; return it."""
    for form, text in (("json", document.serialize(format="json")), ("provn", document.get_provn())):
        assert ProvDocument.deserialize(content=text, format=form) == document, form
    return document


def attributes(record: Any) -> dict[str, Any]:
    """Return the attributes of a record of PROV by their name, the last of those that it has several times."""
    return {str(name): value for name, value in record.attributes}


def relations(document: Any, kind: type) -> set[tuple[str, ...]]:
    """Return what a kind of relation links, with its role."""
    return {
        (
            *(str(value) for name, value in one.formal_attributes if value is not None),
            attributes(one).get("prov:role", ""),
        )
        for one in document.get_records(kind)
    }


NOT_FOLLOWED = (
    "SHOULD be an absolute URI",  # nobody gives functions and programs of a user's own one
    "The Application SHOULD have a url",
    "The SoftwareApplication SHOULD have a version or softwareVersion",  # of a program that never started
    "The Main Workflow SHOULD comply with Bioschemas",  # no person is its creator, as far as we know
    "The `publisher` property",
    "organizational",  # affiliation of the author
    "representing the schema_org:license",  # a license in words
    "The Action SHOULD have an agent",  # nobody said who
    "FormalParameter SHOULD be referenced",  # values whose bytes are not in the crate
    "A FormalParameter that maps to",  # now a file, now a number
)
"""What the profiles recommend and records cannot give."""


def judged(*folders: Path) -> list[str]:
    """Return what the validator says of crates, without what is not followed on purpose."""
    conftest.need("roc-validator")
    program = Path(__file__).parent / "crate_validator.py"
    argv = [conftest.roc_validator(), program, CONTEXT, "provenance-run-crate", *folders]
    ran = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, timeout=100)
    assert ran.stderr == ""
    return [line for line in ran.stdout.splitlines() if not any(words in line for words in NOT_FOLLOWED)]


class Graph(dict[str, dict[str, Any]]):
    """The entities of a crate, by id."""

    def __init__(self, folder: Path) -> None:
        document = json.loads((folder / "ro-crate-metadata.json").read_text())
        super().__init__({entity["@id"]: entity for entity in document["@graph"]})

    def refs(self, id: str, name: str) -> list[str]:
        """Return the ids to which a property leads."""
        found = self[id].get(name, [])
        return [one["@id"] for one in (found if isinstance(found, list) else [found])]
