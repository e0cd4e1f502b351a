"""The wheel and the source distribution are tested as they are built: their files, their metadata, and in use."""

import email.parser
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from push_to_poll_client import __version__
from tests.support.forms import GUARD

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "push_to_poll_client"


def build(target, *, source=ROOT, into):
    """Build a distribution as pip does, without the network, and return its file."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(into)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=GUARD)
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", into=tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", into=tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the files of the wheel, as pip writes them."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)  # noqa: S202  # it is ours
    return folder


def run(program):
    """Run a program in a process without the checkout, and return its output."""
    command = [sys.executable, "-I", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=GUARD).stdout


def names(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return email.parser.Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_each_file_of_the_package_and_nothing_else(wheel):
    expected = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "push_to_poll_client/py.typed" in expected
    assert names(wheel) == expected


def test_the_metadata_of_the_wheel_names_version_python_license_and_readme(wheel):
    found = metadata(wheel)
    assert (found["Name"], found["Version"]) == ("push-to-poll-client", __version__)
    assert (found["Requires-Python"], found["License-Expression"]) == (">=3.11", "MIT")
    assert found.get_payload().strip() == (ROOT / "README.md").read_text().strip()


def test_the_wheel_requires_what_pyproject_declares(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = metadata(wheel).get_all("Requires-Dist")
    assert len(required) == len(project["dependencies"]) + sum(map(len, project["optional-dependencies"].values()))
    assert set(metadata(wheel).get_all("Provides-Extra")) == set(project["optional-dependencies"])


def test_a_consumer_runs_from_the_installed_wheel(installed):
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import anyio, push_to_poll_client\n"
        "from push_to_poll_client import Consumer, MemoryStore\n"
        "from push_to_poll_client.testing import FakeFeed\n"
        "feed = FakeFeed()\n"
        "feed.publish('1')\n"
        "consumer = Consumer(feed, store=MemoryStore(), name='one', process=lambda message: print(message.id))\n"
        "anyio.run(consumer.catch_up)\n"
        "print(push_to_poll_client.__file__)\n"
    )
    assert run(program).splitlines() == ["1", str(installed / "push_to_poll_client" / "__init__.py")]


def test_the_command_of_the_installed_wheel_says_its_version(wheel, installed):
    archive = zipfile.ZipFile(wheel)
    (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "push-to-poll = push_to_poll_client.cli:main" in archive.read(points).decode()
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "from push_to_poll_client.cli import main\n"
        "main(['--version'])\n"
    )
    assert __version__ in run(program)


def test_the_wheel_built_from_the_source_distribution_has_the_same_files(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert names(build("wheel", source=source, into=tmp_path / "again")) == names(wheel)


def test_the_source_distribution_has_tests_pages_and_examples(sdist):
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    tracked = ["tests/conftest.py", "docs/guarantees.md", "examples/transfers.py", ".ci/requirements.txt"]
    tracked += ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile", ".editorconfig"]
    assert set(tracked) <= found
