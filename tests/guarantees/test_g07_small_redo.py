"""G7, small redo: a crash repeats only the last `flush_interval` of work and the messages in flight."""

import pytest

from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("takes", "flush", "most"), [(1.0, 0.05, 1), (0.01, 0.05, 6), (0.01, 0.0, 1)])
async def test_g7_a_crash_repeats_at_most_the_messages_of_the_flush_interval(takes, flush, most, monkeypatch):
    feed = FakeFeed()
    feed.publish(40)
    recorded, unrecorded = [], []

    class Watched(Log):
        async def process(self, message):
            await super().process(message)
            unrecorded.append(len(self.processed) - len(recorded))

    consumer = Watched(feed, takes=takes, flush_interval=flush)
    async with consumer:
        session = consumer._parts.session
        commit = session.commit

        async def watched(*, cursor, records, **others):
            await commit(cursor=cursor, records=records, **others)
            recorded.extend(records)

        monkeypatch.setattr(session, "commit", watched)
        await consumer.poll_now()
    assert len(recorded) == len(unrecorded) == 40
    assert max(unrecorded) <= most


async def test_g7_fast_handlers_commit_once_per_page_and_slow_handlers_once_per_message(monkeypatch):
    commits = []
    for takes in (0.0, 1.0):
        feed = FakeFeed(page_size=10)
        feed.publish(30)
        consumer = Log(feed, takes=takes, max_poll_time=100)
        async with consumer:
            session = consumer._parts.session
            commit = session.commit

            async def watched(commit=commit, takes=takes, **progress):
                commits.append(takes)
                await commit(**progress)

            monkeypatch.setattr(session, "commit", watched)
            await consumer.poll_now()
    assert (commits.count(0.0), commits.count(1.0)) == (3, 30)
