"""Declared feeds, on servers that follow the vendors' protocols exactly. In virtual time."""

import pytest

from push_to_poll_client import FetchRequest
from tests.support.declared import DECLARED, feed_of
from tests.vendors.drive import Drive
from tests.vendors.gmail import Gmail
from tests.vendors.hubspot import HubSpot

pytestmark = pytest.mark.anyio

INCEPTIONS = {Drive: lambda vendor: vendor.inception, Gmail: lambda vendor: str(vendor.first)}
"""Start cursors of feeds that require one; a user starts at the end of the feed."""


def inception(vendor):
    return INCEPTIONS.get(type(vendor), lambda _: None)(vendor)


AGAIN = {HubSpot: 2}
"""Entries repeated from the end of the feed, because they share its time."""


async def walk(feed, cursor):
    """Return the messages from a cursor to the end, and the cursors that may be saved."""
    messages, cursors = [], []
    while True:
        page = await feed.fetch(FetchRequest(cursor))
        messages += page.messages
        cursors += [page.cursor] if page.cursor is not None else []
        if page.next_page is None:
            return messages, cursors
        cursor = page.next_page


@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.__name__)
async def test_a_declared_feed_is_read_to_its_end_and_then_from_its_last_cursor(kind):
    vendor = kind(5)
    feed = feed_of(vendor)
    before, cursors = await walk(feed, inception(vendor))
    vendor.publish(3)
    after, _ = await walk(feed, cursors[-1])
    assert len({message.dedupe_key for message in (*before, *after)}) == 8
    assert len(before) == 5
    assert len(after) - 3 == AGAIN.get(kind, 0)
