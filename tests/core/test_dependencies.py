"""Each dependency has a tested lower limit; downloads of CI are pinned by hash."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FLOORS = [
    requirement
    for listed in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, listed)
]
LOCKED = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)", re.MULTILINE)


def floor(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == ">="
    return Version(specifier.version)


def locked(name):
    text = (ROOT / ".ci" / name).read_text()
    return {name: Version(version) for name, version in LOCKED.findall(text)}


@pytest.mark.parametrize("requirement", FLOORS, ids=str)
def test_make_lowest_installs_exactly_the_lowest_permitted_version(requirement):
    assert locked("requirements-lowest.txt")[requirement.name] == floor(requirement)


@pytest.mark.parametrize("requirement", FLOORS, ids=str)
def test_the_development_set_satisfies_each_requirement(requirement):
    assert locked("requirements.txt")[requirement.name] >= floor(requirement)


@pytest.mark.parametrize("requirement", FLOORS, ids=str)
def test_the_tests_run_with_versions_that_are_permitted(requirement):
    assert Version(importlib.metadata.version(requirement.name)) >= floor(requirement)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-lowest.txt"])
def test_a_lock_file_has_hashes_and_names_no_address(name):
    text = (ROOT / ".ci" / name).read_text()
    assert "://" not in text
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=\S)", text)[1:])
    assert text.startswith(f"# uv pip compile .ci/{name.replace('.txt', '.in')} ")


def test_every_github_action_is_pinned_by_the_hash_of_a_commit():
    """A tag can be moved to other code, which would then run with the repository's token."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
    used = [line for path in workflows for line in path.read_text().splitlines() if "uses:" in line]
    assert used
    assert [line for line in used if not re.search(r"uses: [\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$", line)] == []
