"""State files of earlier versions open, and all their content is still readable.

`files/` has a state file written by each version, and an export of its dead letters.
"""

import json
import shutil
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from push_to_poll_client import Consumer, SQLiteStore
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.listeners.subscriptions import CustomSubscription
from push_to_poll_client.listeners.verifiers import header_token
from push_to_poll_client.listeners.webhook import WebhookListener
from push_to_poll_client.testing import FakeFeed
from tests.support.command_line import typed

FILES = Path(__file__).parent / "files"

WRITTEN_AT = 1796111155.0
"""Time at which the file was written, in seconds since the epoch."""

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inline_threads")]


@pytest.fixture(params=sorted(path.stem for path in FILES.glob("*.db")))
def version(request):
    """Return the commit whose version wrote the file."""
    return request.param


@pytest.fixture
def path(version, tmp_path, monkeypatch):
    """Return a copy of the file, half a minute after it was written."""
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: WRITTEN_AT + 30.0)
    return shutil.copy(FILES / f"{version}.db", tmp_path / "state.db")


class Orders(Consumer):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.processed = []

    async def process(self, message):
        self.processed.append(message.id)


def feed(identity, *ids):
    """Return the feed of that time, with one more message."""
    feed = FakeFeed(page_size=4, identity=identity)
    feed.publish(*ids, "new")
    return feed


async def test_the_cursor_and_the_dedupe_records_are_read(path):
    ids = [*(f"order {number}" for number in range(9)), "dead", "skip", *(f"order {n}" for n in range(9, 14))]
    consumer = Orders(feed("shop", *ids), store=SQLiteStore(path), name="orders", overlap=60.0)
    async with consumer:
        assert consumer._parts.session.cursor == "after-16.0"
        result = await consumer.poll_now()
    assert consumer.processed == ["new"], "the overlap reads all others again, and each has its record"
    assert result.duplicates == len(ids)


async def test_a_dead_letter_is_processed_when_it_is_retried(path):
    consumer = Orders(feed("shop"), store=SQLiteStore(path), name="orders")
    async with consumer:
        (letter,) = await consumer.dead_letters.list()
        assert (letter.dedupe_key, letter.error) == ("dead", "DeadLetterMessage: no such customer")
        await consumer.dead_letters.retry("dead")
        assert await consumer.dead_letters.list() == []
    assert consumer.processed == ["dead"]


def test_a_gap_is_still_in_the_status(path, capsys):
    assert typed("status", "--store", str(path)) == Exit.DONE
    assert "messages before a are gone" in capsys.readouterr().out


async def test_a_postponed_message_still_waits(path):
    waiting = feed("waiting", "order 0", "later", "order 1")
    consumer = Orders(waiting, store=SQLiteStore(path), name="waiting")
    result = await consumer.poll_now()
    assert consumer.processed == []
    assert result.retry_in == pytest.approx(86_370, abs=1)


async def test_a_registration_is_kept_and_not_created_again(path):
    created = []

    async def create(planned):
        created.append(planned.id)
        return replace(planned, expires_at=4e9)

    subscription = CustomSubscription(create, name="orders at the shop")
    webhook = WebhookListener(header_token("X-Token", "secret"), subscription=subscription)
    consumer = Orders(feed("pushed"), store=SQLiteStore(path), name="pushed", listeners=[webhook])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(10)
        tasks.cancel_scope.cancel()
    assert created == []
    assert [one.details["their_id"] for one in subscription.registrations] == ["s-1"]


def test_an_export_of_dead_letters_is_the_same(path, version, capsys):
    assert typed("dead-letters", "--store", str(path), "--name", "orders", "export") == Exit.DONE
    exports = [capsys.readouterr().out, (FILES / f"{version}.jsonl").read_text()]
    new, old = ([json.loads(line) for line in export.splitlines()] for export in exports)
    assert [{name: letter[name] for name in known} for letter, known in zip(new, old, strict=True)] == old
