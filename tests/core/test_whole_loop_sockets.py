"""The whole loop on real sockets, files and processes: HTTP feed, SQLite, push channels, the reference server."""

import itertools
import json
import subprocess
import sys

import anyio
import anyio.to_thread
import pytest

from push_to_poll_client import HTTPFeed, SQLiteStore, SSEListener, WebSocketListener, _schedule
from push_to_poll_client.listeners import _backoff
from push_to_poll_client.testing import serve_in_thread
from tests.support.consumers import Log
from tests.support.forms import GUARD, form

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
def server():
    with serve_in_thread(page_size=100) as server:
        yield server


@pytest.fixture(autouse=True)
def _little_backoff(monkeypatch):
    """Short delays: the tests check the recovery, not its time."""
    monkeypatch.setattr(_schedule, "FIRST_BACKOFF", 0.05)
    monkeypatch.setattr(_backoff, "FIRST_DELAY", 0.05)


by_either_channel = pytest.mark.parametrize("listener", ["websocket", "sse"], indirect=True)


@pytest.fixture
def listener(request, server):
    by_sse = getattr(request, "param", "websocket") == "sse"
    return SSEListener(server.sse_url) if by_sse else WebSocketListener(server.push_url)


@pytest.fixture
def consumer_at(server, listener, tmp_path):
    """Make consumers of the server that share one state file."""

    def make(*, push=True, **settings):
        return Log(
            HTTPFeed(server.url),
            store=SQLiteStore(tmp_path / "state.db"),
            listeners=[listener] if push else [],
            patience=GUARD,
            **{"fallback_interval": 3600, "degraded_interval": 3600, **settings},
        )

    return make


async def connected(server, count=1):
    def happened(stats):
        return stats.websockets_accepted + stats.streams_accepted >= count

    await anyio.to_thread.run_sync(lambda: server.stats.wait_for(happened))


async def fetched(server, count):
    await anyio.to_thread.run_sync(lambda: server.stats.wait_for(lambda stats: stats.fetches >= count))


@by_either_channel
async def test_a_consumer_catches_up_and_stays_current_by_pushes_alone(server, consumer_at, running):
    ids = server.publish(form(300, 1000))
    consumer = running(consumer_at())
    await consumer.until(len(ids))
    await connected(server)
    for _ in range(form(5, 20)):
        ids += server.publish(1)
        await consumer.until(len(ids))
    assert consumer.processed == ids


async def test_g1_a_push_during_a_poll_is_answered_by_the_next_poll(server, consumer_at, running):
    consumer = running(consumer_at(rate=None))
    await connected(server)
    server.publish(1)
    await consumer.until(1)
    server.faults.latency = 0.2
    last = form(4, 20)
    for round_ in range(2, last, 2):
        before = server.stats.fetches
        server.publish(1)
        await fetched(server, before + 2)  # the fetch that sees the end: its answer is fixed now
        server.publish(1)
        await consumer.until(round_ + 1)
        # The timer is set to an hour. One fetch found the end, and the next one found the later message.
        assert server.stats.fetches >= before + 3
    assert len(consumer.processed) == last - 1


@by_either_channel
async def test_the_fallback_poll_finds_a_message_whose_push_was_lost(server, consumer_at, running):
    consumer = running(consumer_at(fallback_interval=0.5, degraded_interval=0.5))
    await connected(server)
    server.faults.drop_next = 3
    for count in (1, 2, 3):
        server.publish(1)
        await consumer.until(count)
    assert server.stats.pushes_dropped == 3


@by_either_channel
async def test_a_listener_reconnects_and_a_poll_finds_the_messages_missed_meanwhile(server, consumer_at, running):
    consumer = running(consumer_at())
    await connected(server)
    server.faults.drop_next = 1
    server.publish(1)
    server.close_websockets()
    await connected(server, 2)
    await consumer.until(1)


@by_either_channel
async def test_no_message_is_lost_when_the_server_restarts(server, consumer_at, running):
    consumer = running(consumer_at())
    await connected(server)
    server.stop()
    server.publish(50)
    server.start()
    await consumer.until(50)


async def test_no_message_is_lost_when_the_server_fails_or_cuts_an_answer(server, consumer_at, running):
    consumer = running(consumer_at(fallback_interval=0.5, degraded_interval=0.5))
    for fault in ({"fail_next": 1, "fail_status": 500}, {"cut_next": 1}, {"fail_next": 1, "retry_after": 0}):
        server.faults.set(**fault)
        ids = server.publish(3)
        await consumer.until(len(consumer.processed) + 3)
        assert consumer.processed[-3:] == ids


async def test_recorded_messages_are_not_processed_again_by_the_next_consumer(server, consumer_at, running):
    server.publish(250)
    async with anyio.create_task_group() as tasks:
        first = consumer_at()
        tasks.start_soon(first.run)
        await first.until(250)
        first.stop()
    server.publish(1)
    second = consumer_at(push=False)
    assert (await second.poll_now()).messages == 1
    assert set(first.processed).isdisjoint(second.processed)


@pytest.mark.long_form  # chaos/test_kill.py kills a consumer at more moments and checks more
def test_no_message_is_lost_when_tail_is_killed_and_restarted(server, tmp_path):
    ids = server.publish(3000)
    command = [
        sys.executable,
        "-m",
        "push_to_poll_client",
        "tail",
        server.url,
        "--store",
        tmp_path / "state.db",
    ]
    seen = []
    for lines in (10, 500, 1200):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            seen.append([json.loads(process.stdout.readline())["id"] for _ in range(lines)])
            process.kill()
            seen[-1] += [json.loads(line)["id"] for line in process.stdout if line.endswith(b"\n")]
    last = subprocess.run([*command, "--once"], capture_output=True, timeout=GUARD, check=True)
    seen.append([json.loads(line)["id"] for line in last.stdout.splitlines()])
    assert sorted(set().union(*seen)) == ids, "nothing is lost"
    for before, after in itertools.pairwise(seen):
        assert after[0] <= before[-1] or ids.index(after[0]) == ids.index(before[-1]) + 1, "nothing is skipped"
