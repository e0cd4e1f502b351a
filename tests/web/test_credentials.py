"""G12 in one matrix: a secret is in no output of any failure, and no other server gets it.

Output is: every log line with its traceback, of this library down to DEBUG and of others down to INFO (httpcore
logs at DEBUG the server's data, which may contain the secret); the error with its causes; status, names, `repr`;
and the output of the command line. On real sockets, so that the libraries beneath log as usual.
"""

import base64
import logging
import re
import socket
import threading
import traceback
from contextlib import ExitStack, contextmanager
from urllib.parse import quote

import anyio
import httpx
import pytest

from push_to_poll_client import FeedError, HTTPFeed, PushToPollError, SSEListener, WebSocketListener
from push_to_poll_client.cli import main
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log
from tests.support.forms import GUARD, LONG

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry+s3cr3t~key"
FORMS = (
    "c4n4ry",
    "s3cr3t",
    base64.b64encode(f"me:{CANARY}".encode()).decode()[:12],
    base64.b64encode(CANARY.encode()).decode()[:12],
)
"""Texts that reveal the secret: any part of it, percent-encoded, and the start of its Base64 for Basic."""

PROXIES = [f"{scheme}_proxy" for scheme in ("http", "https", "ws", "wss", "socks", "all")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Real time, for real sockets."""
    return request.param


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Server:
    """Answer each connection in one way; record the received data."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.was_asked = threading.Event()

    def __enter__(self):
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def _serve(self):
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            with accepted:
                accepted.settimeout(GUARD)
                try:
                    self.asked.append(accepted.recv(65536))
                    self.was_asked.set()
                    accepted.sendall(self.answer() if callable(self.answer) else self.answer)
                except OSError:
                    continue

    def __exit__(self, *_):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    @property
    def heard(self):
        return b"".join(self.asked).decode("latin-1")


def status(line, *headers, body="x"):
    return "\r\n".join([f"HTTP/1.1 {line}", *headers, f"Content-Length: {len(body)}", "", body]).encode()


def redirect(place):
    return lambda elsewhere: status("302 Found", f"Location: {place.format(port=elsewhere.port)}")


FAILURES = {
    "hangs up": lambda _: b"",
    "no HTTP": lambda _: b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "no feed": lambda _: status("200 OK", body="<html>"),
    "401": lambda _: status("401 Unauthorized", 'WWW-Authenticate: Basic realm="x"'),
    "digest": lambda _: status("401 Unauthorized", 'WWW-Authenticate: Digest realm="x", nonce="y", qop="auth"'),
    "403": lambda _: status("403 Forbidden"),
    "404": lambda _: status("404 Not Found"),
    "407": lambda _: status("407 Proxy Authentication Required"),
    "410": lambda _: status("410 Gone"),
    "429": lambda _: status("429 Too Many Requests", "Retry-After: 1"),
    "500": lambda _: status("500 Internal Server Error"),
    "another port": redirect("http://127.0.0.1:{port}/feed"),
    "another host": redirect("http://localhost:{port}/feed"),
    "another origin that knows it": redirect(f"http://127.0.0.1:{{port}}/{CANARY}?key={CANARY}#{CANARY}"),
    "another user": redirect(f"http://{quote(CANARY)}:{quote(CANARY)}@127.0.0.1:{{port}}/"),
    "no URL": redirect(f"http://{quote(CANARY)}@[/"),
    "a circle": redirect("/feed"),
}


async def the_canary():
    return CANARY


async def raises_the_canary():
    raise RuntimeError(CANARY)


async def gives_nonsense():
    return f"{CANARY}\r\nX: y"


def given(user="", query="", **options):
    """Return a way to give a secret: the part in the URL, and the arguments."""
    return f"{user}{{host}}/feed{query}", options


SHARED = {
    "userinfo": given(f"me:{quote(CANARY, safe='')}@"),
    "query": given(query=f"?key={CANARY}"),
    "bare query": given(query=f"?{quote(CANARY, safe='')}"),
    "headers": given(headers={"X-Key": CANARY, "Cookie": f"k={CANARY}"}),
}

FEEDS = {
    **SHARED,
    "user alone": given(f"{quote(CANARY, safe='')}@"),
    "token": given(auth=CANARY),
    "pair": given(auth=("me", CANARY)),
    "callable": given(auth=the_canary),
    "callable that raises": given(auth=raises_the_canary),
    "callable of nonsense": given(auth=gives_nonsense),
    "basic": given(auth=httpx.BasicAuth("me", CANARY)),
    "digest": given(auth=httpx.DigestAuth("me", CANARY)),
    "authorization": given(headers={"Authorization": f"Bearer {CANARY}"}),
}

LISTENERS = {
    **SHARED,
    "token": given(auth=CANARY),
    "callable": given(auth=the_canary),
    "callable of nonsense": given(auth=gives_nonsense),
    "callable for headers": given(headers=lambda: {"Authorization": f"Bearer {CANARY}"}),
}


LEAD_ON = {"digest", "another port", "another host", "another origin that knows it", "another user", "no URL"}
"""Failures after which a client may send the secret again or to another address; tried with each way."""


def matrix(ways):
    """Return pairs of ways and failures; in the short form each way has a third of those outside LEAD_ON."""
    for number, way in enumerate(ways):
        for place, failure in enumerate(FAILURES):
            if LONG or failure in LEAD_ON or (number + place) % 3 == 0:
                yield pytest.param(way, failure, id=f"{way}-{failure}")


def check_nothing_is_said(*said):
    text = "\n".join(map(str, said)).lower()
    for form in FORMS:
        assert form.lower() not in text, re.findall(f".*{re.escape(form.lower())}.*", text)[:3]


@pytest.fixture
def logged(caplog):
    """Return the whole log."""
    caplog.set_level(logging.DEBUG)

    def logged():
        kept = [
            one for one in caplog.records if one.levelno > logging.DEBUG or one.name.startswith("push_to_poll")
        ]
        return "\n".join(map(logging.Formatter().format, kept))

    return logged


def told(error):
    return "" if error is None else "".join(traceback.format_exception(error))


def check_nothing_went(elsewhere):
    check_nothing_is_said(elsewhere.heard)


@contextmanager
def servers(failure):
    with Server(status("200 OK", body="[]")) as elsewhere, Server(FAILURES[failure](elsewhere)) as server:
        yield server, elsewhere
        check_nothing_went(elsewhere)


@pytest.mark.parametrize(("way", "failure"), list(matrix(FEEDS)))
async def test_no_failure_of_an_http_feed_shows_its_credentials_or_sends_them_elsewhere(way, failure, logged):
    url, options = FEEDS[way]
    with servers(failure) as (server, _):
        feed = HTTPFeed("http://" + url.format(host=f"127.0.0.1:{server.port}"), timeout=GUARD, **options)
        consumer = Log(feed)
        with pytest.raises(FeedError) as failed:
            await consumer.poll_now()
    check_nothing_is_said(
        logged(),
        told(failed.value),
        repr(feed),
        feed.identity,
        consumer.name,
        repr(consumer),
        consumer.status(),
    )


async def test_a_refused_connection_of_an_http_feed_does_not_show_its_credentials(logged):
    for url, options in FEEDS.values():
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        consumer = Log(HTTPFeed("http://" + url.format(host=f"127.0.0.1:{port}"), **options))
        with pytest.raises(FeedError) as failed:
            await consumer.poll_now()
        check_nothing_is_said(logged(), told(failed.value), consumer.status())


class Watched:
    """A listener with an event for its failure."""

    def __init__(self, listener):
        self.name = listener.name
        self.listener = listener
        self.fell = anyio.Event()
        self.error = None

    async def listen(self, channel):
        down = channel.down

        def noted(error=None):
            down(error)
            self.error = error
            self.fell.set()

        channel.down = noted
        await self.listener.listen(channel)


async def fall(listener, *, ended=None):
    """Run a consumer until its listener fails; return all output about it."""
    watched = Watched(listener)
    consumer = Log(FakeFeed(), listeners=[watched])

    async def run():
        nonlocal ended
        try:
            await consumer.run()
        except PushToPollError as error:
            ended = error
            watched.fell.set()

    with anyio.fail_after(GUARD):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await watched.fell.wait()
            status = consumer.status()
            tasks.cancel_scope.cancel()
    return told(watched.error), told(ended), status, listener.name, repr(listener)


@pytest.mark.parametrize(("kind", "scheme"), [(WebSocketListener, "ws"), (SSEListener, "http")])
async def test_a_listener_does_not_show_a_secret_in_the_error_of_its_token_provider(kind, scheme, logged):
    said = await fall(kind(f"{scheme}://127.0.0.1/", auth=raises_the_canary))
    check_nothing_is_said(logged(), *said)


@pytest.mark.parametrize(("way", "failure"), list(matrix(LISTENERS)))
@pytest.mark.parametrize(("kind", "scheme"), [(WebSocketListener, "ws"), (SSEListener, "http")])
async def test_no_failure_of_a_listener_shows_its_credentials_or_sends_them_elsewhere(
    kind, scheme, way, failure, logged
):
    url, options = LISTENERS[way]
    with servers(failure) as (server, elsewhere):
        said = await fall(kind(f"{scheme}://" + url.format(host=f"127.0.0.1:{server.port}"), **options))
        assert not elsewhere.asked
    check_nothing_is_said(logged(), *said)


# Credentials from the environment


def proxied(monkeypatch, address):
    for name in PROXIES:
        monkeypatch.setenv(name, address)


# None of them hangs up: on asyncio, websockets 17.4 then raises EOFError in a callback of the event loop.
@pytest.mark.parametrize("failure", ["no HTTP", "407", "500", "another port"])
async def test_no_failure_of_a_proxy_shows_the_credentials_of_the_proxy(failure, monkeypatch, logged):
    with servers(failure) as (proxy, _):
        proxied(monkeypatch, f"http://me:{quote(CANARY)}@127.0.0.1:{proxy.port}")
        consumer = Log(HTTPFeed("http://feed.invalid/"))
        with pytest.raises(FeedError) as failed:
            await consumer.poll_now()
        said = [
            *await fall(WebSocketListener("ws://feed.invalid/")),
            *await fall(SSEListener("http://feed.invalid/")),
        ]
        assert any(form in proxy.heard for form in FORMS)  # it was meant for the proxy
    check_nothing_is_said(logged(), told(failed.value), consumer.status(), *said)


@pytest.mark.parametrize("address", [f"http://me:{CANARY}@", f"http://me:{CANARY}@h:port", f"odd://me:{CANARY}@h"])
async def test_an_invalid_proxy_url_in_the_environment_does_not_show_its_credentials(address, monkeypatch, logged):
    proxied(monkeypatch, address)
    consumer = Log(HTTPFeed("http://feed.invalid/"))
    with pytest.raises(PushToPollError) as failed:
        await consumer.poll_now()
    said = [*await fall(WebSocketListener("ws://feed.invalid/")), *await fall(SSEListener("http://feed.invalid/"))]
    check_nothing_is_said(logged(), told(failed.value), consumer.status(), *said)


# The command line, which has its own error output


@pytest.fixture
def tail(capfd, monkeypatch):
    """Run `push-to-poll tail … -vv`; return its output."""
    monkeypatch.setenv("SECRET", CANARY)

    def tail(*arguments):
        assert main(["tail", *arguments, "-vv"]) != 0
        return "".join(capfd.readouterr())

    return tail


@pytest.mark.parametrize(("way", "failure"), list(matrix(["--token-env", "userinfo", "query"])))
def test_no_failure_of_the_tail_command_shows_its_credentials(way, failure, tail):
    url, _ = given() if way == "--token-env" else SHARED[way]
    with servers(failure) as (server, _):
        arguments = ["--token-env", "SECRET"] if way == "--token-env" else []
        said = tail("http://" + url.format(host=f"127.0.0.1:{server.port}"), "--once", *arguments)
        assert server.asked
    check_nothing_is_said(said)


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_the_token_of_the_feed_is_not_sent_to_a_push_server_on_another_port(scheme, tail):
    with ExitStack() as stack:
        push = stack.enter_context(Server(status("403 Forbidden")))

        def gone():
            assert push.was_asked.wait(GUARD)
            return status("410 Gone")

        feed = stack.enter_context(Server(gone))
        url = f"{scheme}://127.0.0.1:{push.port}/push"
        said = tail(f"http://127.0.0.1:{feed.port}/feed", "--push", url, "--token-env", "SECRET")
        assert FORMS[0] in feed.heard
        check_nothing_went(push)
    check_nothing_is_said(said)
