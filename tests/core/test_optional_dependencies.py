"""The package and the commands work without the extras, and name the missing package if needed."""

import subprocess
import sys

import pytest

from push_to_poll_client import testing
from push_to_poll_client._validation import missing_dependency
from tests.support.forms import GUARD

OF_EXTRAS = ("cryptography", "psycopg", "redis", "uvicorn")

WITHOUT = f"""
import sys

for name in {OF_EXTRAS}:
    sys.modules[name] = None  # makes its import fail

import push_to_poll_client
from push_to_poll_client import cli, durable_streams, feeds, listeners, stores, testing
from push_to_poll_client.listeners import handshakes, postgres, redis, subscriptions, verifiers

for command in ["status", "tail"]:
    try:
        cli.main([command, "--help"])
    except SystemExit as ended:
        assert ended.code == 0
"""


def run_python(script):
    """Run a program in a new process, in which nothing of the package is loaded. Return its output."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=GUARD, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_package_and_the_commands_need_no_extra():
    out = run_python(WITHOUT)
    assert "usage: push-to-poll status" in out
    assert "usage: push-to-poll tail" in out


MISSING = {
    "testing.StoreSuite": "StoreSuite needs pytest: pip install pytest",
    "testing.LeasedStoreSuite": "LeasedStoreSuite needs pytest: pip install pytest",
    "testing.TransactionalStoreSuite": "TransactionalStoreSuite needs pytest: pip install pytest",
    "testing.serve_in_thread": ("The reference server needs uvicorn: pip install 'push-to-poll-client[serve]'"),
    "listeners.redis.RedisListener('redis://h', 'orders')": (
        "RedisListener needs redis: pip install 'push-to-poll-client[redis]'"
    ),
    "listeners.postgres.PostgresListener('', 'orders')": (
        "PostgresListener needs psycopg: pip install 'push-to-poll-client[postgres]' 'psycopg[binary]'"
    ),
    "listeners.verifiers.standard_webhooks('whpk_' + 'A' * 43 + '=')": (
        "An Ed25519 signature needs cryptography: pip install 'push-to-poll-client[crypto]'"
    ),
}
"""Expressions that need a package that is not installed, and the errors that they raise."""


def test_the_error_for_a_missing_package_says_what_to_install():
    out = run_python(f"""
import sys
for name in {("pytest", *OF_EXTRAS)}:
    sys.modules[name] = None
from push_to_poll_client import listeners, testing
import push_to_poll_client.listeners.postgres, push_to_poll_client.listeners.redis
import push_to_poll_client.listeners.verifiers
for code in {list(MISSING)}:
    try:
        eval(code)
    except ImportError as error:
        print(error)
""")
    assert out.splitlines() == list(MISSING.values())


def test_a_suite_without_pytest_says_to_install_it(monkeypatch):
    monkeypatch.delattr(testing, "FeedSuite")
    monkeypatch.delitem(sys.modules, "push_to_poll_client.testing._feed_suite", raising=False)
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(ImportError, match=r"^FeedSuite needs pytest: pip install pytest$"):
        testing.FeedSuite  # noqa: B018  # it is asked for


def test_virtual_time_on_trio_without_trio_says_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trio.testing", None)
    with pytest.raises(ImportError, match=r"^.* needs trio: pip install trio$"):
        testing.virtual_time("trio")


def test_the_error_for_a_broken_package_says_to_reinstall_it():
    error = missing_dependency(
        "RedisListener", "redis", ImportError("bad\nELF"), remedy="pip install 'push-to-poll-client[redis]'"
    )
    assert str(error) == (
        "RedisListener needs redis, which is installed but cannot be imported: "
        "pip install --force-reinstall 'push-to-poll-client[redis]' (bad ELF)"
    )


@pytest.mark.parametrize("suite", [testing.FeedSuite, testing.StoreSuite, testing.TransactionalStoreSuite])
def test_a_suite_without_trio_says_that_it_ran_on_asyncio_alone(monkeypatch, suite):
    monkeypatch.setitem(sys.modules, "trio", None)
    with pytest.raises(pytest.skip.Exception, match=r"ran on asyncio alone: pip install trio$"):
        suite().test_trio_is_installed_so_that_both_event_loops_are_tested()
