"""Validate RO-Crates: ``python crate_validator.py CONTEXT PROFILE FOLDER...``, by the Python of an environment that
has `roc-validator`, which wants an older `rich` than we do. Nothing of pilot is imported, and no network is needed.

CONTEXT is the file with the JSON-LD context of RO-Crate 1.3 that the package `rocrate` brings. That of 1.1, which our
crates name, means the same with every term that they use, but for four.
"""

from __future__ import annotations

import json
import sys

from rocrate_validator.models import Severity, ValidationSettings
from rocrate_validator.services import validate
from rocrate_validator.utils.http import HttpRequester

BIOSCHEMAS = "https://bioschemas.org/"
OLDER = {
    "ComputationalWorkflow": f"{BIOSCHEMAS}ComputationalWorkflow",
    "FormalParameter": f"{BIOSCHEMAS}FormalParameter",
    "input": f"{BIOSCHEMAS}ComputationalWorkflow#input",
    "output": f"{BIOSCHEMAS}ComputationalWorkflow#output",
}
TERMS = "ParameterConnection connection sourceParameter targetParameter sha256 environment containerImage resourceUsage"
WFRUN = {term: f"https://w3id.org/ro/terms/workflow-run#{term}" for term in TERMS.split()}


class Answer:
    """What the validator looks at of an answer."""

    status_code = 200
    headers = {"Content-Type": "application/ld+json"}  # noqa: RUF012

    def __init__(self, document: object) -> None:
        self.text = json.dumps(document)

    def json(self) -> object:
        return json.loads(self.text)


class Offline:
    """Stands for the network: knows two contexts."""

    def __init__(self, context: dict[str, str]) -> None:
        self.known = {
            "https://w3id.org/ro/crate/1.1/context": {"@context": context | OLDER},
            "https://w3id.org/ro/terms/workflow-run/context": {"@context": WFRUN},
        }

    def get(self, url: str, **options: object) -> Answer:
        return Answer(self.known[url])


def main(context: str, profile: str, *folders: str) -> int:
    """Print what is wrong with each crate, in lines of severity and message; return 0 if nothing is required."""
    with open(context) as file:
        offline = Offline(json.load(file)["@context"])
    bad = 0
    for folder in folders:
        settings = ValidationSettings(
            rocrate_uri=folder, profile_identifier=profile, requirement_severity=Severity.RECOMMENDED,
            abort_on_first=False,
        )  # fmt: skip
        HttpRequester().session = offline
        for issue in validate(settings).get_issues(min_severity=Severity.RECOMMENDED):
            print(f"{issue.severity.name} {folder}: {issue.violatingEntity}: {issue.message}")
            bad += issue.severity >= Severity.REQUIRED
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
