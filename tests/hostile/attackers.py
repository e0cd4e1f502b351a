"""Raw bytes of a hostile server, written to a socket because no server library would send them.

An attack is a function of `send`. When the client hangs up, `send` raises, and the attack ends as it should.
"""

import base64
import hashlib
import json
import re
import socketserver
import threading
import time
from collections import Counter

PATIENCE = 30
"""Seconds until a server drops a client that neither reads nor hangs up."""

IDLE = 60
"""Seconds until a normal server hangs up on a client without a request. Busy machines take less."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class Server(socketserver.ThreadingTCPServer):
    """A server that is hostile at the third request to each path, and at each path with a third part.

    The path is `/ATTACK/CASE`. A consumer's first poll sends two requests: for messages 1 to 3, and for the end.
    So the next poll sends the third request, and message 4 follows after the attack.
    """

    daemon_threads = True
    ATTACKED = 3

    def __init__(self, attacks):
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.attacks = attacks
        self.heads = []
        self.news = set()  # the cases that have message 4 although nothing attacked their feed
        self._counts = Counter()
        self._counting = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def asked(self, path):
        """Return the number of requests, including this one."""
        with self._counting:
            self._counts[path] += 1
            return self._counts[path]

    def handle_error(self, request, client_address):
        """The client hung up, as it should in most attacks."""


class _Conversation(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.settimeout(IDLE)
        while head := self._head():
            self.server.heads.append(head)
            path, _, query = head.split(b" ", 2)[1].decode().partition("?")
            attack, case, *hops = path.strip("/").split("/")
            number = self.server.asked((attack, case))
            if attack in self.server.attacks and (hops or number == Server.ATTACKED):
                self.request.settimeout(PATIENCE)
                self.server.attacks[attack](self.request.sendall)
                return
            self._be_well(query, new=number > Server.ATTACKED or case in self.server.news)

    def _head(self):
        head = b""
        while b"\r\n\r\n" not in head:
            if not (received := self.request.recv(65536)):
                return b""
            head += received
        return head

    def _be_well(self, query, *, new):
        numbers = {"": [1, 2, 3], "lastEventId=3": [4] if new else []}.get(query, [])
        body = json.dumps([{"id": str(number), "source": "s"} for number in numbers]).encode()
        self.request.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


class ChannelServer(socketserver.ThreadingTCPServer):
    """A push channel that is hostile at the first connection to each path. At the second a new message arrives.

    Args:
        attacks: By the first part of the path. An attack is a function of the socket and the head of the request.
        feed: The feed with the new message.
        well: Makes the response to a head that opens the channel.
    """

    daemon_threads = True

    def __init__(self, attacks, feed, well):
        super().__init__(("127.0.0.1", 0), _Channel)
        self.attacks = attacks
        self.feed = feed
        self.well = well
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    __exit__ = Server.__exit__
    handle_error = Server.handle_error

    def url(self, scheme, path):
        return f"{scheme}://127.0.0.1:{self.server_address[1]}/{path}"


class _Channel(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.settimeout(PATIENCE)
        head = self.request.recv(65536)
        attack, case = head.split(b" ", 2)[1].decode().strip("/").split("/")
        if self.server.feed.asked(("push", attack, case)) == 1:
            self.server.attacks[attack](self.request, head)
            return
        self.server.feed.news.add(case)
        self.request.sendall(self.server.well(head))
        while self.request.recv(65536):
            pass


def handshake(head, *headers):
    """Return the response that opens a websocket (RFC 6455 §4.2.2)."""
    key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)[1]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324
    lines = (b"HTTP/1.1 101 x", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: " + accept)
    return b"\r\n".join((*lines, *headers, b"", b""))


def says(*parts, times=1, opens=lambda head: b"", ends=True, patience=PATIENCE):
    """Return an attack on a channel: open it, send the parts a number of times, and hang up.

    Args:
        parts: Bytes, or a function that makes them.
        times: Number of repetitions.
        opens: Makes the response to the head.
        ends: True to hang up at once; False to wait until the client sends something or hangs up.
        patience: Seconds that a client may read nothing before it is hung up on.
    """

    def attack(sock, head):
        sock.settimeout(patience)
        sock.sendall(opens(head))
        for _ in range(times):
            for part in parts:
                sock.sendall(part() if callable(part) else part)
        if not ends:
            sock.recv(65536)

    return attack


def trickles(start, part):
    """Return an attack on a channel: one part after the other, slowly, without end."""

    def attack(sock, head):
        sock.sendall(start)
        for _ in range(1_000):
            time.sleep(0.02)  # it is the server that is slow
            sock.sendall(part)

    return attack
