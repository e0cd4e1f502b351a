"""`push-to-poll tail` with a hostile feed, and with strangers at its webhook.

An error is one sentence with its own exit code. Connections of strangers delay no push.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from push_to_poll_client.testing import serve_in_thread
from tests.hostile.attackers import HEAD, Server
from tests.hostile.measured import EVIL, EVIL_BYTES, LONGEST_LINE
from tests.support.forms import form

pytestmark = pytest.mark.slow

GUARD = 120
"""Seconds after which a run counts as hanging."""

WITHOUT_NUL = EVIL.replace("\x00", "")
"""A character that an id must not contain."""


def answer(body, head=HEAD):
    def attack(send):
        send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    return attack


def event(**attributes):
    return json.dumps([{"id": "1", "source": "s", **attributes}]).encode()


ATTACKS = {
    "status-line": answer(b"[]", b"HTTP/1.1 500 " + EVIL_BYTES + b"\r\n"),
    "type": answer(b"[]", b"HTTP/1.1 200 OK\r\nContent-Type: text/" + EVIL_BYTES + b"\r\n"),
    "encoding": answer(b"[]", HEAD + b"Content-Encoding: " + EVIL_BYTES + b"\r\n"),
    "elsewhere": answer(b"", b"HTTP/1.1 302 OK\r\nLocation: http://evil.example/" + b"%1b" * 5000 + b"\r\n"),
    "body": answer(EVIL_BYTES * 1000),
    "no-http": answer(b"", b"\x1b[31m\r\n"),
    "bad-id": answer(event(id=EVIL * 100)),
    "bad-data": answer(event(id=WITHOUT_NUL, data_base64=EVIL)),
    "deep-data": answer(b'[{"id":"1","data":' + b"[" * 5000 + b"]" * 5000 + b"}]"),
}

CODES = dict.fromkeys(ATTACKS, 3) | {"bad-id": 4, "bad-data": 4, "deep-data": 4}
"""3: the feed failed. 4: a message could not be read."""


SHORT = {"status-line"}
"""The test below covers the other exit code. test_hostile_feed.py tries more responses, without a start of Python.
"""


@pytest.fixture(scope="module")
def server():
    with Server({**ATTACKS, "good": answer(event(id=WITHOUT_NUL, type=EVIL, data={EVIL: EVIL}))}) as server:
        yield server


def tail(*arguments):
    command = [sys.executable, "-m", "push_to_poll_client", "tail", *arguments]
    return subprocess.run(command, capture_output=True, timeout=GUARD, check=False)


def check(err):
    for line in err.decode().split("\n"):
        assert line.isprintable(), line
        assert len(line) < LONGEST_LINE


@pytest.mark.parametrize(
    "attack",
    [pytest.param(name, marks=() if name in SHORT else pytest.mark.long_form) for name in ATTACKS],
)
def test_tail_reports_a_hostile_answer_with_one_sentence_and_an_exit_code(server, attack):
    ended = tail(server.url(f"{attack}/once/hop"), "--once", "-vv")
    assert ended.returncode == CODES[attack]
    check(ended.stderr)
    *_, last = ended.stderr.decode().strip().split("\n")
    assert last.startswith("push-to-poll: ")
    assert not ended.stdout


def test_tail_escapes_the_control_characters_of_a_message_in_its_log(server):
    ended = tail(server.url("good/once/hop"), "--exec", f"{sys.executable} -c 'raise SystemExit(7)'", *FAILS)
    assert ended.returncode == 4
    check(ended.stderr)


FAILS = ("--once", "-vv", "--exec-attempts", "1")


# Connections to `--webhook` that send nothing, or nearly nothing

DESCRIPTORS = form(128, 1024)
"""File descriptors of the command. The second is the usual limit of a shell and of a systemd service."""

STRANGERS = form(300, 3000)

SILENT, SLOW, ANSWERED = b"", b"POST / HTTP/1.1\r\nX-Slow: ", b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"
"""Connections that send nothing, send a head byte by byte, or get a 401 and stay open."""

SECRET = "canary-secret"


@contextlib.contextmanager
def tail_with_webhook(feed, log):
    """A command in its own process, which may open `DESCRIPTORS` files and writes its log to a file."""
    command = [sys.executable, "-m", "push_to_poll_client", "tail", feed, "-v", "--fallback-interval", "86400"]
    command += ["--webhook", "127.0.0.1:0", "--webhook-verify", "github", "--webhook-secret-env", "WEBHOOK_SECRET"]
    limited = ["sh", "-c", f'ulimit -Sn {DESCRIPTORS} && exec "$@"', "sh", *command]
    environment = {**os.environ, "WEBHOOK_SECRET": SECRET}
    with (
        log.open("w") as stderr,
        subprocess.Popen(limited, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
    ):
        watchdog = threading.Timer(GUARD, process.kill)  # otherwise a line that does not come is waited for
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def pushed(port, number):
    body = b'{"number": %d}' % number
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-Hub-Signature-256": f"sha256={signature}"}
    return httpx.post(f"http://127.0.0.1:{port}/", content=body, headers=headers, timeout=GUARD).status_code


@contextlib.contextmanager
def descriptors(number):
    """Permit this process that many open files, if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        pytest.skip(f"this system permits {hard} open files")
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "sends",
    [
        pytest.param(SILENT, id="silent"),
        pytest.param(SLOW, id="slow", marks=pytest.mark.long_form),
        pytest.param(ANSWERED, id="answered", marks=pytest.mark.long_form),
    ],
)
def test_a_flood_of_connections_delays_no_push_and_writes_one_log_line(sends, tmp_path):
    rounds = 5
    with (
        descriptors(STRANGERS + 500),
        serve_in_thread(backlog=1) as feed,
        tail_with_webhook(feed.url, tmp_path / "log") as process,
        contextlib.ExitStack() as strangers,
    ):
        assert json.loads(process.stdout.readline())["id"]
        port = int(re.search(r"listening on http://127.0.0.1:(\d+)/", (tmp_path / "log").read_text())[1])
        held = []
        for number in range(rounds):
            for _ in range(STRANGERS // rounds):
                stranger = strangers.enter_context(socket.create_connection(("127.0.0.1", port), timeout=GUARD))
                stranger.sendall(sends)
                held.append(stranger)
            feed.publish(1)
            assert pushed(port, number) == 200
            assert json.loads(process.stdout.readline())["id"].endswith(str(number + 2))
        with contextlib.suppress(ConnectionResetError):
            while held[0].recv(10_000):  # the first stranger was closed, after an answer if there was one
                pass
        process.terminate()
        process.wait(GUARD)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) < 10
    (line,) = (line for line in lines if "WARNING" in line and "SQLite" not in line)
    limit = f"reached the limit of {DESCRIPTORS // 2} connections, each new connection closes the oldest idle one"
    assert line.endswith(limit)
