"""The Kinto server of its authors, which stores the records of Remote Settings, in its own process."""

import json
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx

from tests.support.served import Process

PROGRAM = Path(__file__).parent / "kinto_program.py"

WHO = ("reader", "s3cr3t")

_SETTINGS = {
    "kinto.storage_backend": "kinto.core.storage.memory",
    "kinto.permission_backend": "kinto.core.permission.memory",
    "kinto.cache_backend": "kinto.core.cache.memory",
    "kinto.userid_hmac_secret": "any",
    "multiauth.policies": "basicauth",
    "multiauth.policy.basicauth.use": "kinto.core.authentication.BasicAuthAuthenticationPolicy",
}

_names = count(1)


class Server:
    """The server, once started. It keeps its records in memory.

    Args:
        settings: Kinto's settings, without the prefix "kinto.".
    """

    def __init__(self, **settings):
        self._settings = _SETTINGS | {f"kinto.{name}": value for name, value in settings.items()}
        self._port = 0
        self._process = Process()
        self._client = httpx.Client(auth=WHO, trust_env=False)

    def start(self):
        """Start, again on the same port, without records."""
        arguments = (str(self._port), json.dumps(self._settings))
        # A separate process, because modules in this folder have the same names as others. Kinto warns about
        # HTTP.
        self.url = self._process.start(sys.executable, "-I", "-W", "ignore", PROGRAM, *arguments)
        self._port = httpx.URL(self.url).port

    def kill(self):
        """Kill the process, as in a crash."""
        self._process.kill()

    def close(self):
        """Stop the process and wait for its end."""
        self._process.end()
        self._client.close()

    def collection(self, size=0, **permissions):
        """Create a collection with so many records; `read=["system.Everyone"]`."""
        bucket = f"{self.url}/buckets/bucket-{next(_names)}"
        collection = Collection(self._client, f"{bucket}/collections/orders", bucket)
        collection.create(**permissions)
        collection.add(size)
        return collection


class Collection:
    """A collection of records, as a writer sees it."""

    def __init__(self, client, url, bucket):
        self._client = client
        self._url = url
        self._bucket = bucket
        self._ids = count(1)

    @property
    def records(self):
        return f"{self._url}/records"

    def create(self, **permissions):
        self._send("PUT", self._bucket, json={"permissions": permissions})
        self._send("PUT", self._url)

    def add(self, number):
        """Add so many records. Return their ids."""
        names = [f"order-{next(self._ids)}" for _ in range(number)]
        for name in names:
            self.put(name, state="new")
        return names

    def put(self, name, **data):
        self._send("PUT", f"{self.records}/{name}", json={"data": data})

    def delete(self, name):
        self._send("DELETE", f"{self.records}/{name}")

    def _send(self, method, url, **content):
        self._client.request(method, url, **content).raise_for_status()


@contextmanager
def serving(**settings):
    """Run a server until the end of the block."""
    server = Server(**settings)
    try:
        server.start()
        yield server
    finally:
        server.close()
