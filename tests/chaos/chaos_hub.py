"""A WebSub hub on a socket: it verifies subscriptions, and sends signed pushes with retries.

It keeps its subscriptions while it is down, as hubs do. Otherwise a subscriber would not notice the loss before
the lease ends.
"""

import hashlib
import hmac
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlencode

import httpx

from tests.chaos.chaos_listeners import HOST

ATTEMPTS = 4
BETWEEN = 0.3
"""Seconds before each further attempt."""

TIMEOUT = 2.0
"""Seconds for each answer."""


class Hub:
    """The hub.

    Attributes:
        port: Its port, the same after each restart.
    """

    def __init__(self, directory):
        self.port = 0
        self._secrets = {}
        self._threads = []
        self._http = httpx.Client(trust_env=False, timeout=TIMEOUT)
        self._server = None

    @property
    def subscriptions(self):
        """Number of subscriptions."""
        return len(self._secrets)

    def start(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                form = dict(parse_qsl(self.rfile.read(int(self.headers["content-length"])).decode()))
                self.send_response(202)
                self.send_header("content-length", "0")
                self.end_headers()
                hub._soon(hub._verify, form)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer((HOST, self.port), Handler)
        self.port = self._server.server_port
        self._soon(self._server.serve_forever, 0.05)

    def push(self):
        """Push to all subscribers."""
        if self._server is not None:
            for callback, secret in list(self._secrets.items()):
                self._soon(self._deliver, callback, secret)

    def kill(self):
        """Stop at once, and lose everything in flight."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def close(self):
        self.kill()
        self._http.close()

    def _soon(self, what, *arguments):
        thread = threading.Thread(target=what, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _verify(self, form):
        callback, challenge = form["hub.callback"], hashlib.sha256(repr(form).encode()).hexdigest()
        names = ("hub.mode", "hub.topic", "hub.lease_seconds")
        query = urlencode({**{name: form[name] for name in names}, "hub.challenge": challenge})
        if self._try(lambda: self._http.get(f"{callback}?{query}").text == challenge):
            self._secrets[callback] = form["hub.secret"]

    def _deliver(self, callback, secret):
        body = b"<feed/>"
        signature = hmac.new(secret.encode(), body, "sha256").hexdigest()
        headers = {"x-hub-signature": f"sha256={signature}", "content-type": "application/atom+xml"}
        self._try(lambda: self._http.post(callback, content=body, headers=headers).is_success)

    def _try(self, attempt):
        for _ in range(ATTEMPTS):
            try:
                if self._server is None or attempt():
                    return self._server is not None
            except httpx.TransportError:
                pass
            time.sleep(BETWEEN)
        return False
