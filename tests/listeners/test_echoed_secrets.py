"""Secrets of a listener that a server repeats are masked in log, status and errors (G12)."""

import contextlib
import logging
import traceback

import anyio
import httpx
import psycopg
import pytest
import redis
from websockets.exceptions import ConnectionClosedError, InvalidHeader, InvalidMessage
from websockets.frames import Close

from push_to_poll_client import ListenerError
from push_to_poll_client.durable_streams import DurableStreamsSignature, PullWakeListener
from push_to_poll_client.listeners import LongPollListener, SSEListener, WebSocketListener, sse, websocket
from push_to_poll_client.listeners import postgres as postgres_listener
from push_to_poll_client.listeners import redis as redis_listener
from push_to_poll_client.listeners._requests import UnusableResponse
from push_to_poll_client.listeners.postgres import PostgresListener
from push_to_poll_client.listeners.redis import RedisListener
from push_to_poll_client.listeners.subscriptions import WebSub
from push_to_poll_client.listeners.webhook import WebhookListener
from push_to_poll_client.testing import virtual_time
from tests.support.channels import TimedChannel

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry-s3cr3t"
PIECES = ("c4n4ry", "s3cr3t")


@pytest.fixture
def anyio_backend():
    """Only asyncio, since the database libraries do not support trio."""
    return virtual_time("asyncio")


async def token():
    return CANARY


async def everything_shown(listener, error, caplog):
    """Let each connection fail with an error, and return everything shown about it."""

    @contextlib.asynccontextmanager
    async def connect():
        if credentials := getattr(listener, "_credentials", None):
            await credentials.get()
        raise error
        yield

    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    listener._connect = connect
    channel = TimedChannel()
    with anyio.move_on_after(10):
        await listener.listen(channel)
    shown = ["".join(traceback.format_exception(one)) for one in channel.errors]
    assert shown, "it has failed"
    logged = (record.getMessage() + (record.exc_text or "") for record in caplog.records)
    return "\n".join([repr(listener), *shown, *logged])


def closed(reason):
    return ConnectionClosedError(Close(4000, reason), Close(4000, reason), rcvd_then_sent=True)


def caused(error):
    cause = ValueError(f"no token {CANARY}")
    error.__cause__ = cause
    return error


WEBSOCKET = "wss://shop.example/push"
HTTP = "https://shop.example/push"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: WebSocketListener(WEBSOCKET, auth=CANARY), closed(f"who is {CANARY}?")),
        (lambda: WebSocketListener(WEBSOCKET, auth=token), closed(f"who is {CANARY}?")),
        (lambda: WebSocketListener(WEBSOCKET, headers={"X-Api-Key": CANARY}), InvalidHeader("Upgrade", CANARY)),
        (lambda: WebSocketListener(f"{WEBSOCKET}?token={CANARY}"), InvalidMessage(f"got /push?token={CANARY}")),
        (lambda: WebSocketListener(f"wss://user:{CANARY}@shop.example"), closed(f"user:{CANARY}")),
        (lambda: WebSocketListener(WEBSOCKET, auth=CANARY), caused(ConnectionResetError(104, "reset"))),
        (lambda: SSEListener(HTTP, auth=CANARY), UnusableResponse(f"the server sent 'text/{CANARY}'")),
        (lambda: SSEListener(HTTP, auth=CANARY), httpx.RemoteProtocolError(f"illegal status line: {CANARY}")),
        (lambda: SSEListener(f"https://user:{CANARY}@shop.example"), httpx.RemoteProtocolError(CANARY.upper())),
        (lambda: LongPollListener(f"{HTTP}?api_key={CANARY}"), httpx.RemoteProtocolError(CANARY)),
        (lambda: RedisListener(f"redis://:{CANARY}@db", "a"), redis.ResponseError(f"WRONGPASS {CANARY}")),
        (lambda: RedisListener(redis.asyncio.Redis(password=CANARY), "a"), redis.ResponseError(CANARY)),
        (lambda: PostgresListener(f"host=db password={CANARY}", "a"), psycopg.OperationalError(f"not {CANARY}")),
        (lambda: PostgresListener(f"postgresql://u:{CANARY}@db/x", "a"), psycopg.OperationalError(CANARY)),
    ],
)
async def test_a_secret_in_the_text_of_a_failure_is_masked(make, error, caplog):
    shown = await everything_shown(make(), error, caplog)
    assert not [piece for piece in PIECES if piece in shown.lower()], shown


@pytest.mark.parametrize("module", [websocket, sse, redis_listener, postgres_listener])
def test_an_error_of_an_unknown_type_is_shown_by_its_type_alone_and_is_not_a_cause(module):
    failure = module.failure_of(ValueError(CANARY))
    assert (failure.sentence, failure.cause) == ("failed with ValueError", None)


class Server(httpx.AsyncBaseTransport):
    """Sends the same response to each request, or raises the same error."""

    def __init__(self, answer):
        self._answer = answer

    async def handle_async_request(self, request):
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer()


ANSWERS = {
    "a redirect": lambda: httpx.Response(302, headers={"location": f"/login/{CANARY}"}),
    "an encoding": lambda: httpx.Response(200, headers={"content-encoding": CANARY}),
    "a body": lambda: httpx.Response(400, text=f"there is no {CANARY}"),
    "a link": lambda: httpx.Response(200, headers={"link": f"<https://hub.example/{CANARY}>; rel=hub"}),
    "a broken connection": httpx.RemoteProtocolError(f"illegal status line: {CANARY}"),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_secret_in_the_answer_of_a_hub_is_masked(answer, caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    async with httpx.AsyncClient(transport=Server(ANSWERS[answer])) as client:
        topic, callback = "https://shop.example/topic", "https://me.example/"
        hub = WebSub(topic, callback, secret=CANARY, auth=CANARY, client=client)
        listener = WebhookListener(subscription=hub)
        channel = TimedChannel()
        with anyio.move_on_after(10), contextlib.suppress(ListenerError):
            await listener.listen(channel)
        hub._on_denied(f"'{CANARY}' is not welcome")
    errors = ["".join(traceback.format_exception(error)) for error in channel.errors if error]
    shown = f"{hub!r} {listener!r} {errors} {[record.getMessage() for record in caplog.records]}"
    assert "WebSub https://shop.example/topic: " in shown
    assert not [piece for piece in PIECES if piece in shown], shown


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_secret_in_the_answer_about_public_keys_is_masked(answer, caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    async with httpx.AsyncClient(transport=Server(ANSWERS[answer])) as client:
        signature = DurableStreamsSignature("https://shop.example/keys", auth=CANARY, client=client)
        await signature._refresh_if_allowed()
    assert not signature._keys
    shown = f"{signature!r} {[record.getMessage() for record in caplog.records]}"
    assert "0 known keys" in shown
    assert not [piece for piece in PIECES if piece in shown], shown


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_secret_in_the_answer_of_a_stream_server_is_masked(answer, caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    async with httpx.AsyncClient(transport=Server(ANSWERS[answer])) as client:
        listener = PullWakeListener(
            "https://shop.example/v1/stream", wake_stream="wakes", pattern="*", auth=CANARY, client=client
        )
        channel = TimedChannel()
        with anyio.move_on_after(10), contextlib.suppress(ListenerError):
            await listener.listen(channel)
    errors = ["".join(traceback.format_exception(error)) for error in channel.errors if error]
    shown = f"{listener!r} {errors} {[record.getMessage() for record in caplog.records]}"
    assert "https://shop.example/v1/stream" in shown
    assert not [piece for piece in PIECES if piece in shown], shown
