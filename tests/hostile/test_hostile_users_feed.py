"""A user's feed that passes on any value of its server: no page may damage the saved state."""

import contextlib
import logging
import sqlite3

import pytest

from push_to_poll_client import FeedError, Message, Page, PushToPollError, SQLiteStore
from push_to_poll_client._types import MAX_ID
from tests.hostile.measured import EVIL, LONGEST_LINE, MIB
from tests.support.consumers import Log
from tests.support.forms import form

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HUGE = "x" * 10 * MIB

LONG_EVIL = EVIL * form(MIB // 8, MIB)
"""A text of more than a MiB."""


@pytest.fixture(params=["asyncio", pytest.param("trio", marks=pytest.mark.long_form)])
def anyio_backend(request):
    """Real time, for a store in worker threads."""
    return request.param


class Pages:
    """Returns one of these pages per fetch."""

    def __init__(self, *pages):
        self.pages = list(pages)

    async def fetch(self, request):
        page = self.pages.pop(0)
        if isinstance(page, Exception):
            raise page
        return page


GOOD = Page([Message("3")], cursor="3")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(Page(cursor=HUGE), id="cursor of 10 MB"),
        pytest.param(Page(next_page=HUGE), id="next of 10 MB"),
        pytest.param(Page([Message("4", cursor=HUGE)]), id="message's cursor of 10 MB"),
        pytest.param(None, id="nothing"),
        pytest.param({"messages": []}, id="dict"),
        pytest.param(Page(None), id="no messages"),
        pytest.param(Page(iter([])), id="messages that are no sequence"),
        pytest.param(Page(["4"]), id="messages that are text"),
        pytest.param(Page("4"), id="text for messages"),
        pytest.param(Page(cursor=4), id="number for cursor"),
        pytest.param(Page(cursor=b"4"), id="bytes for cursor"),
        pytest.param(Page(next_page=["4"]), id="list for next"),
        pytest.param(Page(retry_after="soon"), id="text for retry_after"),
        pytest.param(Page(closed="no"), id="text for closed"),
        pytest.param(Page(gap=None), id="nothing for gap"),
        pytest.param(Page(next_page="4", closed=True), id="closed with a next"),
        pytest.param(Page(retry_after=float("nan")), id="no number for retry_after"),
        pytest.param(FeedError(EVIL * MIB), id="evil FeedError"),
        pytest.param(Page([Message(LONG_EVIL)]), id="long id"),
        pytest.param(Page([Message("4", dedupe_key=LONG_EVIL)]), id="long key"),
        pytest.param(FeedError("no", retry_after=EVIL), id="evil retry_after"),
        pytest.param(RuntimeError(EVIL * MIB), id="evil error"),
        pytest.param(UnicodeDecodeError("utf-8", EVIL.encode(), 0, 1, EVIL), id="evil decode error"),
    ],
)
async def test_a_bad_page_fails_the_poll_and_the_cursor_stays(page, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    consumer = Log(Pages(GOOD, page, Page()), store=SQLiteStore(tmp_path / "s.db"))
    await consumer.poll_now()
    with pytest.raises(FeedError):
        await consumer.poll_now()
    assert saved(tmp_path / "s.db") == "3"
    check_lines(caplog, consumer)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Message(LONG_EVIL[:MAX_ID]), id="id"),
        pytest.param(Message("4", dedupe_key=LONG_EVIL[:MAX_ID]), id="key"),
        pytest.param(Message("4", data=LONG_EVIL), id="data"),
        pytest.param(Message("\ud800", cursor="\ud800"), id="half a pair"),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
async def test_a_message_with_hostile_fields_is_processed_or_fails_with_a_short_error(
    message, fails, tmp_path, caplog
):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")

    async def process(message):
        if fails and message.id != "3":
            raise ValueError(f"{message.id} {message.data}")

    path = tmp_path / "s.db"
    consumer = Log(Pages(GOOD, Page([message])), store=SQLiteStore(path), process=process, retry=None)
    await consumer.poll_now()
    with pytest.raises(PushToPollError) if fails else contextlib.nullcontext() as failed:
        await consumer.poll_now()
    assert saved(path) == ("3" if fails else message.cursor or "3")
    assert path.stat().st_size < MIB  # what is kept of a key is short
    check_lines(caplog, consumer)
    if fails:
        assert str(failed.value).isprintable()
        assert len(str(failed.value)) < LONGEST_LINE


def check_lines(caplog, consumer):
    for text in (repr(consumer.status()), *(record.getMessage() for record in caplog.records)):
        assert text.isprintable()
        assert len(text) < 2 * LONGEST_LINE


def saved(path):
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
        cursor = file.execute("SELECT cursor FROM push_to_poll_consumer").fetchone()[0]
    return cursor.decode("utf-8", "surrogatepass") if isinstance(cursor, bytes) else cursor
