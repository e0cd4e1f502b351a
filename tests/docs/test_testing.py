"""The tests that `docs/testing.md` shows are run by pytest, as in a project of its reader."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from push_to_poll_client import testing
from tests.support.forms import GUARD

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = re.findall(r"^```python$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with the files of the page, and the examples that they import."""
    directory = tmp_path_factory.mktemp("project")
    (directory / "with_asyncio").mkdir()
    (directory / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    for name, text in FILES.items():
        (directory / name).write_text(text)
    return directory


def run_pytest(project, *arguments):
    """Run pytest in the project, with the two plugins, and return the last line of its report."""
    plugins = ["-p", "anyio.pytest_plugin", "-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, *arguments],
        cwd=project,
        env={
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, project, ROOT / "examples"))),
            "SSL_CERT_DIR": str(ROOT / "tests"),
        },
        capture_output=True,
        text=True,
        timeout=GUARD,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def number_of_tests(name):
    return len(re.findall(r"^(?:async )?def test_", FILES[name], re.MULTILINE))


def test_every_block_of_the_page_is_a_file_that_is_run():
    assert len(BLOCKS) == len(FILES)
    assert {name for name in FILES if "test_" not in name} == {
        "orders.py",
        "conftest.py",
        "with_asyncio/conftest.py",
    }


@pytest.mark.slow
def test_the_tests_of_the_page_pass_on_both_event_loops(project):
    names = ["test_orders.py", "test_respx.py", "test_webhook.py"]
    passed = 2 * sum(map(number_of_tests, names)) + 2 * 3 + number_of_tests("test_server.py")
    done = run_pytest(project, *names, "test_handler.py", "test_server.py")
    assert done.startswith(f"{passed} passed in ")


@pytest.mark.slow
def test_the_test_of_the_page_passes_with_pytest_asyncio(project):
    assert run_pytest(project, "with_asyncio").startswith("1 passed in ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fewest", "skipped"), [("test_custom_feed.py", 50, 20), ("test_file_store.py", 80, 0)]
)
def test_the_suites_of_the_page_pass(project, name, fewest, skipped):
    done = run_pytest(project, name)
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|skipped)", done)}
    assert counts["passed"] >= fewest
    assert counts.get("skipped", 0) <= skipped


def test_every_tool_for_tests_is_named():
    unnamed = {"Answer", "Asked", "PushRecord", "ReferenceApp", "ReferenceServer", "Stats"}
    assert {name for name in testing.__all__ if not re.search(rf"\b{name}\b", PAGE)} <= unnamed
