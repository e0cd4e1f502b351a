"""Hostile webhook requests: strangers gain at most a few early polls within the rate.

The tests call the application like a server, so a hundred thousand requests take seconds. Behind it a real
consumer reads a feed that counts its polls.
"""

import functools
import gc
import hashlib
import hmac
import logging
import random
import sys
import time
import tracemalloc

import anyio
import anyio.lowlevel
import pytest

from push_to_poll_client.listeners._hints import JSONHint
from push_to_poll_client.listeners._webhook.limits import MAX_REPLAYS
from push_to_poll_client.listeners.handshakes import cloudevents_origins, dropbox_challenge, graph_validation
from push_to_poll_client.listeners.verifiers import github
from push_to_poll_client.listeners.webhook import Verified, WebhookListener
from push_to_poll_client.testing import FakeFeed
from push_to_poll_client.testing._virtual_time import virtual_time
from tests.hostile.measured import BURST, EVIL, MIB, RATE
from tests.support.asgi_calls import GONE, SECRET, asked, naming, parts_of, scope_of, signed
from tests.support.consumers import Log
from tests.support.forms import form

pytestmark = pytest.mark.anyio

REQUESTS = form(3_000, 100_000)

MAX_BODY = 4096

STATUSES = {200, 401, 405, 408, 413, 429, None}
"""Check the status of a response; a client that hung up gets none."""

BODY = naming("alice", cursor="after-1.0")


def signature(body, key=SECRET):
    return {"X-Hub-Signature-256": "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()}


# One request of each kind: the scope, and the events of its body


def forged(dice):
    body = dice.randbytes(dice.randrange(200))
    wrong = [
        signature(body, b"another"),
        signature(body + b"x"),
        {
            "X-Hub-Signature-256": dice.choice(
                ["", "sha256=", "sha1=00", "sha256=" + "é" * 64, "x" * 9000, EVIL[:3]]
            )
        },
        {"X-Hub-Signature-256": "sha256=" + "0" * dice.randrange(100)},
        {},
    ]
    return scope_of(headers=dice.choice(wrong) | {"Content-Length": str(len(body))}), [body]


def replayed(dice):
    """Yield one signed request under many delivery ids."""
    headers = signature(BODY) | {"X-GitHub-Delivery": str(dice.random())}
    return scope_of(headers=headers), [BODY]


def truncated(dice):
    cut = dice.randrange(len(BODY))
    end = dice.choice([[GONE], [b""]])
    return scope_of(headers=signature(BODY) | {"Content-Length": str(len(BODY))}), [BODY[:cut], *end]


def oversize(dice):
    length = dice.choice(
        [{}, {"Content-Length": str(MAX_BODY + 1)}, {"Content-Length": "9" * dice.randrange(1, 999)}]
    )
    return scope_of(headers=signature(b"x") | length), [b"x" * 1000] * 5


def mis_encoded(dice):
    """Put invalid bytes into every place in which a server passes bytes."""
    method = dice.choice(["GET", "POST", "OPTIONS", "HEAD", "BREW", "\x00"])
    scope = scope_of(method, dice.choice(["/", "", "/\ufffd", "/" + EVIL, "//..//"]))
    scope["query_string"] = dice.choice([b"challenge=%ff", b"validationToken=%00", dice.randbytes(50), b"&" * 500])
    scope["headers"] = [
        (dice.choice([b"content-length", b"webhook-request-origin", b"\xff"]), dice.randbytes(20))
        for _ in range(5)
    ]
    if dice.random() < 0.5:
        body = dice.choice(
            [b"\xff" * 50, b"[" * 2000, b'{"cursor": "\\ud800"}', b'{"to":' * 500, BODY * 2, b"\x00"]
        )
        return scope | {"headers": [(b"x-hub-signature-256", b"sha256=" + dice.randbytes(32))]}, [body]
    return scope, [dice.randbytes(50)]


KINDS = (forged, replayed, truncated, oversize, mis_encoded)


async def sent(hooks, kind, dice):
    scope, parts = kind(dice)
    return await called(hooks, scope, parts)


async def called(hooks, scope, parts):
    events, answers = parts_of(*parts), []

    async def receive():
        return next(events, GONE)

    async def send(event):
        answers.append(event)

    await hooks(scope, receive, send)
    return answers[0]["status"] if answers else None


def hooks_of(**arguments):
    return WebhookListener(
        github(SECRET),
        handshake=[dropbox_challenge(), graph_validation(), cloudevents_origins({"events.example"})],
        hint=JSONHint(cursor="cursor"),
        route="to.names",
        max_body=MAX_BODY,
        **arguments,
    )


@pytest.fixture(params=["asyncio", pytest.param("trio", marks=pytest.mark.long_form)])
def anyio_backend(request):
    return virtual_time(request.param)


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch):
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", anyio.current_time)


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_a_flood_of_forged_and_repeated_requests_causes_one_wake_and_hides_no_push(running, caplog):
    """Of a thousand requests a second only the first replayed one wakes.

    There is no exception, no growing memory and a short log, and the genuine push wakes.
    """
    caplog.set_level(logging.WARNING)
    hooks, feed, dice = hooks_of(rate=None), FakeFeed(), random.Random(1)  # noqa: S311  # the same lies each time
    consumer = running(Log(feed, listeners=[hooks.listener_for("alice")], fallback_interval=86_400))
    await anyio.sleep(60)
    polls, statuses = len(feed.requests), set()

    async def lie(times):
        for number in range(times):
            statuses.add(await sent(hooks, KINDS[number % len(KINDS)], dice))
            if number % 50 == 0:
                await anyio.sleep(0.05)

    await lie(1000)
    tracemalloc.start()
    try:
        await lie(REQUESTS)
        grown, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counters = hooks.counters()
    assert statuses <= STATUSES
    assert (counters.woken, counters.replayed) == (1, (REQUESTS + 1000) // len(KINDS) - 1)
    assert len(feed.requests) - polls <= 4, "one wake, and the three looks after a push that found nothing"
    assert grown < MIB / 4
    assert peak < MIB
    assert len(caplog.records) <= 3
    feed.publish("1")
    news = naming("alice", cursor="news")
    assert await called(hooks, scope_of(headers=signature(news)), [news]) == 200
    await anyio.sleep(1)
    assert consumer.processed == ["1"]


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_a_sender_with_the_secret_causes_only_polls_within_the_rate(running):
    """Each request differs, and time does not limit their number."""
    hooks = hooks_of(rate=None)
    feed = FakeFeed()
    running(Log(feed, listeners=[hooks], fallback_interval=86_400))
    await anyio.sleep(60)
    polls, began = len(feed.requests), anyio.current_time()
    for number in range(REQUESTS // 2):
        body = naming("alice", cursor=f"lie-{number}")
        assert await called(hooks, scope_of(headers=signature(body)), [body]) == 200
        if number % 50 == 0:
            await anyio.sleep(0.1)
    await anyio.sleep(10)
    took = anyio.current_time() - began
    assert len(feed.requests) - polls <= BURST + 4 + RATE * took
    assert len(hooks._replay_cache._expiries) == min(MAX_REPLAYS, REQUESTS // 2)


async def test_requests_beyond_the_rate_are_not_verified_and_delay_a_message_by_degraded_interval(running):
    hashed = []

    def verify(request):
        hashed.append(request)
        return False

    hooks = WebhookListener(verify)
    feed = FakeFeed()
    consumer = running(Log(feed, listeners=[hooks], fallback_interval=86_400, degraded_interval=10))
    await anyio.sleep(60)
    feed.publish("1")
    began = anyio.current_time()
    statuses = []
    for _ in range(REQUESTS // 2):
        statuses.append(await called(hooks, scope_of(headers=signed(b"")), [b""]))
        await anyio.sleep(0.001)
    took = anyio.current_time() - began
    assert len(hashed) <= 200 + 100 * took
    assert statuses.count(429) == len(statuses) - len(hashed)
    await anyio.sleep(10)
    assert consumer.processed == ["1"]
    assert consumer.at[0] - began <= 10 + 1


async def test_unknown_consumer_names_are_not_kept_in_memory():
    hooks = WebhookListener(lambda request: Verified((request.body,)), route="to.names", rate=None)
    tracemalloc.start()
    try:
        for number in range(REQUESTS // 10):
            body = naming(*(f"{number}-{name}" for name in range(10)))
            assert (await asked(hooks, scope_of(), body)).status == 200
            if number % 50 == 0:
                await anyio.lowlevel.checkpoint()  # a turn of the loop, in which asyncio forgets cancelled timers
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert hooks.counters().unknown_names == REQUESTS
    assert grown < MIB / 4


# What a wrong signature costs does not tell how wrong it is


WARM = 4
"""Requests until Python has filled its caches: the first two take some more instructions."""


def instructions(call):
    """Count the Python instructions and C functions of a call."""
    counts = {"opcode": 0, "c": 0}

    def trace(frame, event, _):
        frame.f_trace_opcodes = True
        counts["opcode"] += event == "opcode"
        return trace

    def profile(_, event, __):
        counts["c"] += event == "c_call"

    tracer, profiler = sys.gettrace(), sys.getprofile()
    gc.disable()  # whose callbacks are instructions too
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(profiler)
        sys.settrace(tracer)
        gc.enable()
    return counts


def whole(coroutine):
    """Run a coroutine that never waits."""
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    return ended.value.value


@pytest.mark.parametrize("anyio_backend", [None])
def test_a_wrong_signature_takes_the_same_work_wherever_it_differs(anyio_backend, monkeypatch):
    """Compares counts of work, not seconds: a correct digit must not add work."""
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", time.monotonic)
    monkeypatch.setattr(anyio, "move_on_after", lambda seconds: _Nothing())
    hooks = WebhookListener(github(SECRET), rate=None)
    right = signature(BODY)["X-Hub-Signature-256"]
    scheme, digits = right[:7], right[7:]
    wrong = [
        scheme + digits[:at] + ("0" if digits[at] != "0" else "1") + digits[at + 1 :] for at in (0, 1, 31, 62, 63)
    ]
    wrong += [scheme + "0" * 64, scheme + "f" * 64, scheme + digits[::-1]]
    work = functools.partial(_work_of, hooks)
    for _ in range(WARM):
        work(wrong[0])
    counted = {tuple(work(one).items()) for one in wrong}
    assert len(counted) == 1, counted
    assert hooks.counters().refused == len(wrong) + WARM


def _work_of(hooks, header):
    scope = scope_of(headers={"X-Hub-Signature-256": header})
    coroutine = called(hooks, scope, [BODY])
    return instructions(lambda: whole(coroutine))


class _Nothing:
    """Without a limit, where no event loop runs."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False
