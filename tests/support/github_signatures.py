"""GitHub's signatures as its own library makes and verifies them: npm @octokit/webhooks-methods, in a process."""

import json
import queue
from contextlib import contextmanager

from tests.support.durable_streams_server import HOME, node
from tests.support.forms import GUARD
from tests.support.served import Process

__all__ = ["octokit"]


class Octokit:
    """The library, once started."""

    def __init__(self):
        self._answers = queue.Queue()
        self._process = Process(self._answers.put)
        self._process.start(node(), HOME / "github_signatures.mjs")

    def sign(self, secret, payload):
        return self._ask("sign", secret, payload)

    def verify(self, secret, payload, signature):
        """Whether it is; what the library raises of an argument that is empty is a no."""
        return self._ask("verify", secret, payload, signature) is True

    def close(self):
        self._process.end()

    def _ask(self, *what):
        self._process.tell(json.dumps(what))
        return json.loads(self._answers.get(timeout=GUARD))


@contextmanager
def octokit():
    """The library for the length of a `with`."""
    found = Octokit()
    try:
        yield found
    finally:
        found.close()
