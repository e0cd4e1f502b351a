"""`push-to-poll tail --webhook`: pushes on a real socket, and an orderly end."""

import contextlib
import errno
import functools
import hashlib
import hmac
import importlib.util
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from push_to_poll_client.cli import _webhook
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.listeners.verifiers import no_verification
from push_to_poll_client.listeners.webhook import WebhookListener
from push_to_poll_client.testing import serve_in_thread
from tests.support.command_line import start, stderr_lines, typed
from tests.support.forms import GUARD

SECRET = "canary-secret"
FIRST, SECOND = "000000000001", "000000000002"
FEED = "http://127.0.0.1:1/feed"
LISTENING = re.compile(r"webhook: listening on (http://\S+)")
GITHUB = ["--webhook-verify", "github", "--webhook-secret-env", "WEBHOOK_SECRET"]


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)


@pytest.fixture
def server():
    with serve_in_thread(backlog=1) as server:
        yield server


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def signed(body, key=SECRET):
    return {"X-Hub-Signature-256": "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}


def posted(url, body=b"{}", key=SECRET):
    return httpx.post(url, content=body, headers=signed(body, key), timeout=GUARD)


# In a separate process


@contextlib.contextmanager
def started(*arguments):
    with start("tail", *arguments) as process:
        watchdog = threading.Timer(2 * GUARD, process.kill)  # a missing line must not block the test
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()  # does nothing if the process has already ended


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, Exit.INTERRUPTED, marks=pytest.mark.long_form),  # sent by `Visitor`
        (signal.SIGTERM, Exit.TERMINATED),
    ],
)
def test_a_signed_request_prints_the_next_message_and_a_signal_ends_the_command(server, number, code):
    arguments = [server.url, "--webhook", "127.0.0.1:0", *GITHUB, "-v", "--fallback-interval", "86400"]
    with started(*arguments) as process:
        url = next(match[1] for line in process.stderr if (match := LISTENING.search(line)))
        assert json.loads(process.stdout.readline())["id"] == FIRST
        server.publish(1)
        assert posted(url, key="wrong").status_code == 401
        answer = posted(url)
        assert (answer.status_code, answer.content) == (200, b"")
        assert "server" not in answer.headers
        assert json.loads(process.stdout.readline())["id"] == SECOND
        process.send_signal(number)
        assert process.wait(GUARD) == code
        rest = process.stderr.read()
    assert "Traceback" not in rest
    assert SECRET not in rest


# In this process, so that coverage counts the lines


class Visitor(threading.Thread):
    """Call a function once the webhook listens, then end the command as Ctrl-C does."""

    def __init__(self, port, visit):
        super().__init__()
        self.url = f"http://127.0.0.1:{port}/"
        self._address = "127.0.0.1", port
        self._visit = visit
        self.error = None

    def run(self):
        try:
            self._connected().close()
            self._visit(self)
        except BaseException as error:  # noqa: BLE001  # raised in the test
            self.error = error
        finally:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def _connected(self):
        until = time.monotonic() + GUARD
        while True:
            try:
                return socket.create_connection(self._address, timeout=GUARD)
            except ConnectionRefusedError:
                assert time.monotonic() < until

    def connected(self):
        return self._connected()


def wait_until(true):
    """Poll for an effect of another thread that has no event to wait for."""
    until = time.monotonic() + GUARD
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def visited(visit, feed, *options):
    """Run a command while a visitor uses its webhook, and return the exit code."""
    port = free_port()
    visitor = Visitor(port, visit)
    visitor.start()
    code = typed("tail", feed, "--webhook", f"127.0.0.1:{port}", *options)
    visitor.join(GUARD)
    if visitor.error is not None:
        raise visitor.error
    return code


@pytest.mark.parametrize(
    ("how", "answer"),
    [("github", 401), ("standard-webhooks", 401), ("stripe", 401), ("dropbox", 401), ("none", 200)],
)
def test_each_webhook_verify_option_is_applied_to_requests(server, capsys, monkeypatch, how, answer):
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    secret = [] if how == "none" else ["--webhook-secret-env", "WEBHOOK_SECRET"]

    def visit(visitor):
        assert httpx.post(visitor.url, timeout=GUARD).status_code == answer
        challenge = httpx.get(visitor.url, params={"challenge": "abc"}, timeout=GUARD)
        assert (challenge.status_code == 200) == (how == "dropbox")
        wait_until(sys.stdout.getvalue)  # the first poll may take longer than the requests

    code = visited(visit, server.url, "--webhook-verify", how, *secret)
    assert code == Exit.INTERRUPTED
    out, err = capsys.readouterr()
    assert json.loads(out)["id"] == FIRST
    assert stderr_lines(err) == []


def test_an_idle_connection_is_closed(server, monkeypatch):
    monkeypatch.setattr(_webhook, "IDLE_TIMEOUT", 0.1)
    monkeypatch.setattr(_webhook, "TICK", 0.02)

    def visit(visitor):
        for part in (b"", b"POST / HTTP/1.1\r\nX-Slow: "):
            with visitor.connected() as idle:
                idle.sendall(part)
                assert idle.recv(100) == b""
        with visitor.connected() as asking:
            asking.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert asking.recv(10_000).startswith(b"HTTP/1.1 401")
            assert asking.recv(100) == b""

    assert visited(visit, server.url, *GITHUB) == Exit.INTERRUPTED


OPEN_BODY = (
    b"POST / HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256=%s\r\nContent-Length: 2\r\n"
    b"Expect: 100-continue\r\n\r\n"
)


def with_open_body(visitor, body=b"{}"):
    """Open a connection that sent the head of a signed request without its body."""
    connection = visitor.connected()
    connection.sendall(OPEN_BODY % signed(body)["X-Hub-Signature-256"].removeprefix("sha256=").encode())
    assert connection.recv(10_000).startswith(b"HTTP/1.1 100")
    return connection


def is_closed(connection):
    """Wait until the server has closed a connection."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(100) == b""
    return True


def test_beyond_the_limit_a_new_connection_closes_the_oldest_one_without_a_request(server, capsys, monkeypatch):
    monkeypatch.setattr(_webhook, "connection_limit", lambda: 3)

    def visit(visitor):
        with contextlib.ExitStack() as stack:
            opened = lambda: stack.enter_context(visitor.connected())  # noqa: E731
            in_request = stack.enter_context(with_open_body(visitor))
            silent, slow = opened(), opened()
            slow.sendall(b"POST / HTTP/1.1\r\nX-Slow: ")
            third = opened()
            assert is_closed(silent)
            slow.sendall(b"x")  # a single byte now and then does not keep the connection open
            fourth = opened()
            assert is_closed(slow)
            in_request.sendall(b"{}")
            assert in_request.recv(10_000).startswith(b"HTTP/1.1 200")
            opened()
            assert is_closed(third)  # this connection is older than that response
            opened()
            assert is_closed(fourth)
            opened()
            assert is_closed(in_request)

    assert visited(visit, server.url, *GITHUB) == Exit.INTERRUPTED
    (line,) = stderr_lines(capsys.readouterr().err)
    assert line.endswith(
        "webhook: reached the limit of 3 connections, each new connection closes the oldest idle one"
    )


def test_beyond_the_limit_the_oldest_connection_is_closed_if_all_are_in_a_request(server, monkeypatch):
    monkeypatch.setattr(_webhook, "connection_limit", lambda: 2)

    def visit(visitor):
        with with_open_body(visitor) as first, with_open_body(visitor) as second:
            assert posted(visitor.url).status_code == 200
            assert is_closed(first)
            second.sendall(b"{}")
            assert second.recv(10_000).startswith(b"HTTP/1.1 200")

    assert visited(visit, server.url, *GITHUB) == Exit.INTERRUPTED


def test_a_request_without_an_end_is_closed(server, monkeypatch):
    monkeypatch.setattr(_webhook, "IDLE_TIMEOUT", 0.01)
    monkeypatch.setattr(_webhook, "REQUEST_TIMEOUT", 0.1)
    monkeypatch.setattr(_webhook, "TICK", 0.02)

    def visit(visitor):
        with with_open_body(visitor) as endless:
            assert is_closed(endless)

    assert visited(visit, server.url, *GITHUB) == Exit.INTERRUPTED


class FakeConnection:
    in_request = False

    def __init__(self, closed):
        self.transport = self
        self.abort = lambda: closed.append(self)


def test_a_sender_that_has_just_connected_is_not_closed_for_the_next_one_if_all_others_are_in_a_request():
    closed = []
    connections = _webhook._Connections("webhook", 10)
    strangers = [FakeConnection(closed) for _ in range(10)]
    for stranger in strangers:
        stranger.in_request = True
        connections.add(stranger, 0.0)
    for at in range(5):
        connections.add(FakeConnection(closed), float(at))
    assert closed == strangers[:5]


def test_a_client_that_sends_many_requests_at_once_keeps_its_age(server, monkeypatch):
    monkeypatch.setattr(_webhook, "connection_limit", lambda: 2)

    def visit(visitor):
        with visitor.connected() as many, visitor.connected() as second:
            asked = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            many.sendall(asked + asked + asked[:-2])
            answers = b""
            while answers.count(b"HTTP/1.1 401") < 2:
                answers += many.recv(10_000)
            with visitor.connected():
                assert is_closed(many)
            second.sendall(asked)
            assert second.recv(10_000).startswith(b"HTTP/1.1 401")

    assert visited(visit, server.url, *GITHUB) == Exit.INTERRUPTED


def test_a_connection_that_is_answered_after_it_was_closed_does_not_count():
    connections, closed = _webhook._Connections("webhook", 1), []
    first, second, third = (FakeConnection(closed) for _ in range(3))
    connections.add(first, 0.0)
    connections.add(second, 1.0)
    connections.note_response(first, 2.0)
    connections.add(third, 3.0)
    assert closed == [first, second]


def test_the_limit_is_logged_again_after_an_hour(caplog):
    connections = _webhook._Connections("webhook", 1)
    for at in (0.0, 1.0, 3600.0, 3601.0, 3602.0):
        connections.add(FakeConnection([]), at)
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("descriptors", "limit"),
    [(1024, 512), (64, 32), (1, 1), (1_048_576, _webhook.MAX_CONNECTIONS), (-1, _webhook.MAX_CONNECTIONS)],
)
def test_connections_take_half_of_the_file_descriptors(monkeypatch, descriptors, limit):
    assert resource.RLIM_INFINITY == -1
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, -1))
    assert _webhook.connection_limit() == limit


def test_a_malformed_request_gets_status_400_and_is_not_logged(server, capsys):
    def visit(visitor):
        with visitor.connected() as rude:
            rude.sendall(b"\x16\x03\x01 garbage\r\n\r\n")
            assert rude.recv(10_000).startswith(b"HTTP/1.1 400")

    assert visited(visit, server.url, *GITHUB) == Exit.INTERRUPTED
    assert stderr_lines(capsys.readouterr().err) == []


def test_an_answer_has_a_date_header(server, monkeypatch):
    monkeypatch.setattr(_webhook, "TICK", 0.01)

    def visit(visitor):
        assert "date" in httpx.post(visitor.url, timeout=GUARD).headers

    assert visited(visit, server.url, *GITHUB) == Exit.INTERRUPTED


def test_the_command_ends_with_exit_code_3_when_the_feed_is_gone(server, capsys):
    server.faults.set(fail_next=1, fail_status=410)
    code = typed("tail", server.url, "--webhook", "127.0.0.1:0", *GITHUB)
    assert code == Exit.FEED
    assert len(stderr_lines(capsys.readouterr().err)) >= 1


def test_the_address_of_the_webhook_is_logged(server, capsys):
    assert visited(lambda visitor: None, server.url, *GITHUB, "-v") == Exit.INTERRUPTED
    assert "webhook: listening on http://127.0.0.1:" in capsys.readouterr().err


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_webhook_server_closes_its_socket_when_the_task_beside_it_ends(anyio_backend):
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    answers = []

    async def follow():
        async with httpx.AsyncClient(timeout=GUARD) as client:
            answers.append(await client.get(f"http://127.0.0.1:{listening.getsockname()[1]}/"))

    await _webhook.serve_in_background(WebhookListener(no_verification()), listening, follow)
    assert answers[0].status_code == 405
    assert listening.fileno() == -1


class OutOfDescriptors(socket.socket):
    """Listening socket of a process that cannot open more files for a while."""

    def __init__(self):
        super().__init__()
        self.left = 3

    def accept(self):
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_connection_that_the_system_refuses_is_logged_once_and_accepted_later(
    anyio_backend, caplog, monkeypatch
):
    monkeypatch.setattr(_webhook, "ACCEPT_PAUSE", 0.01)
    listening = OutOfDescriptors()
    listening.bind(("127.0.0.1", 0))
    listening.listen()

    async def follow():
        async with httpx.AsyncClient(timeout=GUARD) as client:
            answer = await client.post(f"http://127.0.0.1:{listening.getsockname()[1]}/")
            assert answer.status_code == 200

    await _webhook.serve_in_background(WebhookListener(no_verification()), listening, follow)
    assert listening.left == 0
    assert [record.getMessage() for record in caplog.records] == [
        "webhook: cannot accept a connection: OSError: [Errno 24] Too many open files"
    ]


# Rejected arguments


def test_a_port_in_use_is_reported_in_one_sentence(server, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code = typed("tail", server.url, "--webhook", f"127.0.0.1:{taken.getsockname()[1]}", *GITHUB)
    assert code == Exit.PUSH
    (line,) = stderr_lines(capsys.readouterr().err)
    assert line.endswith(
        "--webhook: cannot listen on this address: Address already in use; choose another HOST:PORT"
    )


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("canary-secret.invalid", "Name or service|Temporary failure|No address"),
        ("x" * 70, "not a valid host name"),
    ],
)
def test_an_invalid_host_is_reported_in_one_sentence_without_its_name(capsys, host, why):
    assert typed("tail", FEED, "--webhook", f"{host}:80", *GITHUB) == Exit.PUSH
    (line,) = stderr_lines(capsys.readouterr().err)
    assert re.search(why, line)
    assert host not in line


def test_an_ipv6_address_is_logged_in_brackets(server, capsys):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    server.faults.set(fail_next=1, fail_status=410)
    assert typed("tail", server.url, "--webhook", "[::1]:0", *GITHUB, "-v") == Exit.FEED
    assert "webhook: listening on http://[::1]:" in capsys.readouterr().err


usage = functools.partial(pytest.mark.parametrize, ("options", "says"))


@usage(
    [
        (["--webhook-verify", "github"], "need --webhook; add it, or leave them out"),
        (["--webhook-secret-env", "WEBHOOK_SECRET"], "need --webhook; add it, or leave them out"),
        (
            ["--webhook", "127.0.0.1:0"],
            "--webhook needs --webhook-verify with one of github, standard-webhooks, stripe, dropbox",
        ),
        (
            ["--webhook", "127.0.0.1:0", "--webhook-verify", SECRET],
            "--webhook needs --webhook-verify with one of github",
        ),
        (
            ["--webhook", "127.0.0.1:0", "--webhook-verify", ""],
            "--webhook needs --webhook-verify with one of github",
        ),
        (["--webhook", "127.0.0.1:0", "--webhook-verify", "github"], "needs --webhook-secret-env"),
        (
            ["--webhook", "127.0.0.1:0", "--webhook-verify", "github", "--webhook-secret-env", SECRET],
            "--webhook-secret-env: the environment variable is not set or empty; give the name of a variable, not",
        ),
        (
            ["--webhook", "127.0.0.1:0", "--webhook-verify", "none", "--webhook-secret-env", "WEBHOOK_SECRET"],
            "--webhook-verify none needs no secret",
        ),
        (["--webhook", "127.0.0.1:0", *GITHUB, "--once"], "--once does not wait for pushes"),
        (
            ["--webhook", "127.0.0.1:0", "--webhook-verify", "standard-webhooks", *GITHUB[2:]],
            "",
        ),
        *(
            (["--webhook", address, *GITHUB], "--webhook must be HOST:PORT")
            for address in (
                *("", "8080", ":8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "::1:80"),
                *(
                    f"http://u:{SECRET}@x:80",
                    "x:-1",
                    "x y:80",
                    "x:80/",
                    "x:٣",
                    "\x1b[2J:80",
                    "\udcff@:80",
                    "[x:80",
                ),
            )
        ),
    ]
)
def test_invalid_options_are_reported_in_one_sentence_with_exit_code_2(capsys, options, says):
    assert typed("tail", FEED, *options) == Exit.USAGE
    (line,) = stderr_lines(capsys.readouterr().err)
    assert says in line
    assert SECRET not in line
    assert line.isprintable()


def test_a_missing_serve_extra_is_reported_with_the_install_command(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "push_to_poll_client.cli._tail.find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    assert typed("tail", FEED, "--webhook", "127.0.0.1:0", *GITHUB) == Exit.USAGE
    assert "pip install 'push-to-poll-client[serve]'" in capsys.readouterr().err


def test_commands_work_without_the_serve_extra():
    code = (
        "import sys; sys.modules['uvicorn'] = None; from push_to_poll_client.cli import main; main(['tail', '-h'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=GUARD, check=False)
    assert run.returncode == 0, run.stderr
    assert "--webhook-verify" in run.stdout


def test_a_command_does_not_see_the_secret(server, tmp_path):
    seen = tmp_path / "seen"
    command = f"sh -c 'env > {seen}.new; mv {seen}.new {seen}'"
    code = visited(lambda _: wait_until(seen.exists), server.url, *GITHUB, "--exec", command)
    assert code == Exit.INTERRUPTED
    assert SECRET not in seen.read_text()
