"""The package and the command line work without what the extras install."""

import subprocess
import sys

import pytest

from tests.support.forms import GUARD

OF_EXTRAS = ("cryptography", "opentelemetry", "psycopg", "redis", "rich", "uvicorn")

WITHOUT = f"""
import sys

for name in {OF_EXTRAS}:
    sys.modules[name] = None  # so that importing it fails

import push_to_poll_client
from push_to_poll_client import cli, durable_streams, feeds, listeners, stores, testing
from push_to_poll_client.listeners import handshakes, postgres, redis, subscriptions, verifiers

sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", [["status", "--help"], ["tail", "--help"]])
def test_the_package_and_the_commands_need_no_extra(command):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *command], capture_output=True, text=True, timeout=GUARD, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: push-to-poll" in done.stdout
