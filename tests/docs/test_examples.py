"""The examples run: a FastAPI service, a cron job, a replay, a vendor's SDK, a feed of one's own."""

import base64
import importlib.util
import logging
import os
import socket
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import anyio
import httpx
import pytest

from push_to_poll_client import Consumer, MemoryStore, SQLiteStore
from push_to_poll_client.testing import FeedSuite, serve_in_thread
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server
from tests.support.signing import standard_webhook
from tests.vendors.acme import Acme

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = b"k" * 24
WEBHOOK_SECRET = f"whsec_{base64.b64encode(KEY).decode()}"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server():
    with serve_in_thread(backlog=3) as server:
        yield server


real_time = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


# The FastAPI service


class Heard(logging.Handler):
    """The log lines of an example, to be waited for."""

    def __init__(self):
        super().__init__("INFO")
        self.lines, self._event = [], anyio.Event()

    def emit(self, record):
        self.lines.append(record.getMessage())
        self._event.set()

    async def count(self, number):
        """Return the lines when there are so many."""
        with anyio.fail_after(GUARD):
            while len(self.lines) < number:
                self._event = anyio.Event()
                await self._event.wait()
        return self.lines


@pytest.fixture
def database(request):
    server = shared_server(request.config)
    yield server
    server.execute("DROP SCHEMA IF EXISTS push_to_poll CASCADE")


@pytest.fixture
def service(server, database, monkeypatch):
    """The environment and the log of the FastAPI service. No timer polls."""
    monkeypatch.setenv("FEED_URL", server.url)
    monkeypatch.setenv("WEBHOOK_SECRET", WEBHOOK_SECRET)
    monkeypatch.setenv("DATABASE_URL", database.conninfo)
    example, heard = load("fastapi_webhook"), Heard()
    monkeypatch.setattr(example.Orders, "__init__", partialmethod(Consumer.__init__, fallback_interval=3600))
    monkeypatch.setattr(example.logger, "level", logging.INFO)
    example.logger.addHandler(heard)
    yield example, heard
    example.logger.removeHandler(heard)


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://me.example")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_fastapi_service_is_woken_by_a_webhook_and_reports_its_health(server, service):
    example, heard = service
    app = example.create_app()
    async with client_of(app) as client:
        async with app.router.lifespan_context(app):
            await heard.count(3)
            assert (await client.get("/health")).status_code == 200
            server.publish(2)
            assert (await client.post("/hooks/", content=b"{}")).status_code == 401
            assert (await client.post("/hooks/", **standard_webhook(KEY))).status_code == 200
            await heard.count(5)
        health = await client.get("/health")
    assert (health.status_code, health.json()["mode"]) == (503, "stopped")
    assert [line.split(":")[0] for line in heard.lines] == [f"order {n:012}" for n in range(1, 6)]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_webhook_at_a_fastapi_service_that_stands_by_wakes_the_owner(server, service):
    example, heard = service
    owner, other = example.create_app(), example.create_app()
    async with client_of(other) as of_other:
        async with owner.router.lifespan_context(owner):
            await heard.count(3)
            async with other.router.lifespan_context(other):
                with anyio.fail_after(GUARD):
                    while (health := (await of_other.get("/health")).json())["mode"] != "standby":  # noqa: ASYNC110
                        await anyio.sleep(0.01)
                assert health["owner"] == f"{socket.gethostname()}:{os.getpid()}"
                server.publish(1)
                assert (await of_other.post("/hooks/", **standard_webhook(KEY))).status_code == 200
                await heard.count(4)
                assert (await of_other.get("/health")).json()["mode"] == "standby"
        assert [line.split(":")[0] for line in heard.lines] == [f"order {n:012}" for n in range(1, 5)]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_fastapi_service_keeps_serving_when_its_consumer_cannot_start(service, database, monkeypatch):
    example, heard = service
    monkeypatch.setenv("DATABASE_URL", database.conninfo.replace("me@", "locked@"))
    app = example.create_app()
    async with app.router.lifespan_context(app):
        assert await heard.count(1) == ["the consumer of orders has stopped"]
        async with client_of(app) as client:
            assert (await client.get("/health")).status_code == 503


# The cron job


@pytest.mark.anyio
@real_time
async def test_each_run_of_the_cron_job_processes_what_is_new(server, tmp_path, capsys):
    cron, state = load("cron_poller"), str(tmp_path / "orders.db")
    assert await cron.main(server.url, state) == 0
    *ids, summary = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in ids] == [f"{n:012}" for n in (1, 2, 3)]
    assert summary == "3 new, 0 of them failed, 0 dead letters kept"
    server.publish(1)
    assert await cron.main(server.url, state) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[0] == f"{4:012}"


@pytest.mark.anyio
@real_time
async def test_the_cron_job_tells_a_run_at_work_from_a_failure(server, tmp_path, capsys):
    cron, state = load("cron_poller"), str(tmp_path / "orders.db")
    session = await SQLiteStore(state).claim("orders", feed=server.url)
    assert await cron.main(server.url, state) == 0
    await session.release()
    assert capsys.readouterr().err == "the previous run has not ended\n"
    server.faults.fail_next = 1
    server.faults.fail_status = 404
    assert await cron.main(server.url, state) == 1
    assert "404" in capsys.readouterr().err


# The replay


@pytest.mark.anyio
@real_time
async def test_the_replay_processes_a_range_again_and_leaves_the_cursor(server, tmp_path, capsys):
    replay, state = load("replay"), str(tmp_path / "orders.db")
    orders = replay.Orders(server.url, state)
    await orders.catch_up()
    capsys.readouterr()
    await replay.main(server.url, state, f"{1:012}", f"{2:012}")
    assert capsys.readouterr().out == f"{2:012} example.order\nmessages replayed: 1\n"
    await replay.main(server.url, state, "inception")
    assert capsys.readouterr().out.splitlines()[-1] == "messages replayed: 3"
    await orders.catch_up()
    assert capsys.readouterr().out == ""
    assert orders.status().cursor == f"{3:012}"


# The vendor's SDK


@pytest.mark.anyio
async def test_a_customer_of_the_vendor_gets_typed_events_and_a_webhook(running):
    sdk, acme, seen = load("vendor_sdk"), Acme(3), []

    class Billing(sdk.AcmeEvents):
        async def process(self, message):
            seen.append(message.data)

    async with acme.client() as client:
        billing = running(
            Billing(acme.authorization, store=MemoryStore(), webhook_secret=WEBHOOK_SECRET, client=client)
        )
        await anyio.sleep(1)
        acme.publish()
        webhook = httpx.ASGITransport(billing.webhook)
        async with httpx.AsyncClient(transport=webhook, base_url="https://me.example") as sender:
            assert (await sender.post("/acme", **standard_webhook(KEY))).status_code == 200
        await anyio.sleep(1)  # the fallback interval is a minute
        assert [event.id for event in seen] == [entry["id"] for entry in acme.entries]
        assert isinstance(seen[0], sdk.AcmeEvent)
        assert billing.status().name == "acme"
        billing.stop()


@pytest.mark.anyio
async def test_the_vendor_sdk_polls_without_a_webhook_and_takes_every_option():
    sdk, acme, seen = load("vendor_sdk"), Acme(3), []
    async with acme.client() as client:
        events = sdk.AcmeEvents(
            acme.authorization, store=MemoryStore(), name="eu", client=client, process=seen.append, retry=None
        )
        acme.script.append(acme.throttled(30))
        began = anyio.current_time()
        with pytest.raises(Exception, match="429"):
            await events.poll_now()
        await events.poll_now(timeout=60)
    assert events.webhook is None
    assert len(seen) == 3
    assert anyio.current_time() - began >= 30


# A feed of one's own


class Desk:
    """The help desk of the example: a list of changes, and the tickets as they are now."""

    def __init__(self, count):
        self.changes, self.broken = [], False
        self.change(count)

    def change(self, count):
        for _ in range(count):
            number = len(self.changes) + 1
            self.changes.append({"number": number, "ticket": f"T-{number % 3}"})

    def answer(self, request):
        if self.broken:
            self.broken = False
            return httpx.Response(500)
        if request.url.path == "/changes":
            if not request.url.params["after"].isdecimal():
                return httpx.Response(400)
            after, limit = int(request.url.params["after"]), int(request.url.params["limit"])
            found = self.changes[after : after + limit]
            return httpx.Response(200, json={"changes": found, "more": after + limit < len(self.changes)})
        ticket = request.url.path.removeprefix("/tickets/")
        if ticket == "T-0":
            return httpx.Response(404)
        return httpx.Response(200, json={"id": ticket, "title": "it is broken"})

    def client(self):
        return httpx.AsyncClient(transport=httpx.MockTransport(self.answer), base_url="https://desk.example")


class TestCustomFeed(FeedSuite):
    example = load("custom_feed")

    async def make_feed(self, count):
        self.example.PAGE_SIZE = 2
        self.desk = Desk(count)
        return self.example.TicketFeed(self.desk.client())

    async def publish(self, feed, count):
        self.desk.change(count)

    async def reopen(self, feed):
        return self.example.TicketFeed(self.desk.client())

    async def break_next(self, feed):
        self.desk.broken = True


@pytest.mark.anyio
@real_time
async def test_the_custom_feed_hands_out_each_change_once_also_of_a_deleted_ticket(tmp_path, capsys):
    example, desk = load("custom_feed"), Desk(2)
    for change in range(2):
        feed, store = example.TicketFeed(desk.client()), SQLiteStore(tmp_path / "tickets.db")
        tickets = Consumer(feed, store=store, name="tickets", process=example.process)
        await tickets.catch_up()
        desk.change(1 - change)
    found = "{'id': 'T-%s', 'title': 'it is broken'}"
    assert capsys.readouterr().out.splitlines() == [
        f"1 {found % 1}",
        f"2 {found % 2}",
        "3 {'id': 'T-0', 'deleted': True}",
    ]


# Usage


@pytest.mark.parametrize("name", ["cron_poller", "custom_feed", "replay"])
def test_an_example_without_arguments_prints_its_usage(name):
    program = EXAMPLES / f"{name}.py"
    usage = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False, timeout=GUARD)
    assert usage.returncode == 1
    assert f"{name}.py https://" in usage.stderr
