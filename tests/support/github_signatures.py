"""GitHub's own signature library, npm @octokit/webhooks-methods, in a process."""

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
        """Return True if the signature is valid. The library's error for an empty argument counts as False."""
        return self._ask("verify", secret, payload, signature) is True

    def close(self):
        self._process.end()

    def _ask(self, *what):
        self._process.tell(json.dumps(what))
        return json.loads(self._answers.get(timeout=GUARD))


@contextmanager
def octokit():
    """Run the library until the end of the block."""
    found = Octokit()
    try:
        yield found
    finally:
        found.close()
