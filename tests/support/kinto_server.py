"""Kinto as its authors serve it, the store of records behind Remote Settings, in a process of its own."""

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
    """The server, once started. It has its records in memory.

    Args:
        settings: Kinto's, without the "kinto." before them.
    """

    def __init__(self, **settings):
        self._settings = _SETTINGS | {f"kinto.{name}": value for name, value in settings.items()}
        self._port = 0
        self._process = Process()
        self._client = httpx.Client(auth=WHO, trust_env=False)

    def start(self):
        """Start, again on the same port, and with nothing in it."""
        arguments = (str(self._port), json.dumps(self._settings))
        # By itself: in this folder are modules with the names of others. It warns of HTTP.
        self.url = self._process.start(sys.executable, "-I", "-W", "ignore", PROGRAM, *arguments)
        self._port = httpx.URL(self.url).port

    def kill(self):
        """As a crash does it."""
        self._process.kill()

    def close(self):
        """End, and wait for the end."""
        self._process.end()
        self._client.close()

    def collection(self, size=0, **permissions):
        """A new collection, with so many records in it; `read=["system.Everyone"]`."""
        bucket = f"{self.url}/buckets/bucket-{next(_names)}"
        collection = Collection(self._client, f"{bucket}/collections/orders", bucket)
        collection.create(**permissions)
        collection.add(size)
        return collection


class Collection:
    """What a writer does with a collection of records."""

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
        """Add so many records; return what they are called."""
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
    """A server for the length of a `with`."""
    server = Server(**settings)
    try:
        server.start()
        yield server
    finally:
        server.close()
