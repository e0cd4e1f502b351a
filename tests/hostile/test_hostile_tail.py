"""`push-to-poll tail` and a feed that means harm: errors are one sentence each, and the exit code says which."""

import json
import subprocess
import sys

import pytest

from tests.hostile.attackers import HEAD, Server
from tests.hostile.measured import EVIL, EVIL_BYTES, LONGEST_LINE

pytestmark = pytest.mark.slow

GUARD = 120
"""Seconds after which a run is taken to hang."""

WITHOUT_NUL = EVIL.replace("\x00", "")
"""An id may not have one."""


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
"""The test below has the other exit code.

What an answer does is tried in test_hostile_feed.py, without a start of Python.
"""


@pytest.fixture(scope="module")
def server():
    with Server({**ATTACKS, "good": answer(event(id=WITHOUT_NUL, type=EVIL, data={EVIL: EVIL}))}) as server:
        yield server


def tail(*arguments):
    command = [sys.executable, "-m", "push_to_poll_client.cli", "tail", *arguments]
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
