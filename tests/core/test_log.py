"""Each log line names its consumer, in its text and in its record."""

import logging
from contextvars import copy_context
from pathlib import Path

import anyio
import pytest

import push_to_poll_client
from push_to_poll_client import Consumer, FeedError, Hooks, MemoryStore, Push
from push_to_poll_client._log import ConsumerLog, log_as
from push_to_poll_client.listeners._webhook.routing import WebhookSubscriber
from push_to_poll_client.testing import FakeFeed, ManualListener
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))


@pytest.fixture(autouse=True)
def caplog(caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    return caplog


def lines(caplog, text=""):
    """Return the consumer and the text of each record that contains `text`."""
    return [(record.consumer, record.getMessage()) for record in caplog.records if text in record.getMessage()]


class FailingHooks(Hooks):
    def message_settled(self, message, state):
        raise KeyError(message.id)


class Wary(Log):
    def should_poll(self, hint, status):
        raise KeyError(hint.cursor)


async def test_two_consumers_in_one_event_loop_name_themselves_in_each_line(caplog, running):
    feeds = {name: FakeFeed(identity=f"feed of {name}") for name in ("orders", "bills")}
    listeners = {name: ManualListener(name=f"channel of {name}") for name in feeds}
    consumers = {
        name: running(Wary(feed, name=name, listeners=[listeners[name]], hooks=FailingHooks()))
        for name, feed in feeds.items()
    }
    for feed in feeds.values():
        feed.publish("1")
        feed.fail(FeedError("down"), times=2)
    for consumer in consumers.values():
        await consumer.until(1)
    for listener in listeners.values():
        listener.push(Push("c"))
        listener.finish()
    await anyio.sleep(1)
    for what in (
        "poll failed, retrying in",
        "traceback of",
        "hook ",
        "should_poll failed",
        ": up",
        ": closed by the server",
    ):
        told = lines(caplog, what)
        assert {consumer for consumer, _ in told} == {"orders", "bills"}, what
    for consumer, line in lines(caplog):
        assert line.startswith(f"{consumer}: ")


@pytest.mark.parametrize("call", ["poll_now", "rewind", "replay", "dead_letters", "run", "async with"])
async def test_every_call_of_a_consumer_names_it(call, caplog):
    class Telling(FakeFeed):
        async def fetch(self, request):
            logger.info("fetches")
            return await super().fetch(request)

        async def latest(self):
            logger.info("looks for its end")
            return await super().latest()

        async def aclose(self):
            logger.info("closes")

    consumer = Log(Telling(), name="orders")
    if call == "poll_now":
        await consumer.poll_now()
    elif call == "rewind":
        await consumer.rewind("latest")
    elif call == "replay":
        await consumer.replay("inception")
    elif call == "dead_letters":
        await consumer.dead_letters.list()
    elif call == "run":
        with anyio.move_on_after(1):
            await consumer.run()
    else:
        async with consumer:
            logger.info("this is of no consumer")
    told = lines(caplog)
    assert ("orders", "orders: closes") in told
    assert {consumer for consumer, line in told if "no consumer" not in line} == {"orders"}
    caplog.clear()
    logger.info("after it")
    assert lines(caplog) == [(None, "after it")]


async def test_a_handler_that_uses_another_consumer_leaves_the_names_right(caplog):
    inner = Wary(FakeFeed(), name="inner")
    inner_feed = inner._feed

    async def process(message):
        inner_feed.fail(FeedError("down"))
        try:
            await inner.poll_now()
        finally:
            inner.wake(Push("c"))  # delivered in the context of this handler
            logger.info("the handler ends")

    async with inner:
        feed = FakeFeed()
        feed.publish("1")
        outer = Consumer(feed, store=MemoryStore(), name="outer", process=process, retry=None, on_failure="skip")
        await outer.poll_now()
        await anyio.sleep(0.01)
    assert lines(caplog, "the handler ends") == [("outer", "outer: the handler ends")]
    ((consumer, line),) = lines(caplog, "should_poll failed")
    assert consumer == "inner"
    assert line.startswith("inner: ")
    ((consumer, line),) = lines(caplog, ", skipped: ")
    assert (consumer, line[:7]) == ("outer", "outer: ")


async def test_a_line_from_a_worker_thread_names_the_consumer(caplog):
    feed = FakeFeed()
    feed.publish("1")
    consumer = Consumer(feed, store=MemoryStore(), name="orders", process=lambda _: logger.info("in a thread"))
    await consumer.poll_now()
    assert lines(caplog, "in a thread") == [("orders", "orders: in a thread")]


class Told:
    """A channel that logs like the channel of a consumer."""

    wake = request_poll = subscribed = save = while_owner = state = None

    def __init__(self):
        self.is_up = anyio.Event()

    def up(self):
        logger.info("up")
        self.is_up.set()


async def test_a_webhook_of_several_consumers_names_the_one_whose_channel_comes_up(caplog):
    """The consumer that owns the subscription reports to the others from its own task."""
    channel = Told()
    with log_as("orders"):
        subscriber = WebhookSubscriber(channel)
    with log_as("bills"):
        subscriber.call_soon(subscriber.up)
    await channel.is_up.wait()
    assert lines(caplog, "up") == [("orders", "orders: up")]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("100 % of %s and %(name)s", "100 % of %s and %(name)s"),
        ("two\nlines\x1b[2J", "two lines�[2J"),
        ("of a database\r\n\r\n   indented\tline ", "of a database indented�line"),
        ("half a \ud800 pair", "half a � pair"),
        ("a" * 60, "a" * 60),
        (
            "https://shop.example/api/v2/tenants/4711/orders/changes?types=created,paid&limit=100",
            "https://shop.example/api/v2/te…?types=created,paid&limit=100",
        ),
    ],
)
def test_a_name_cannot_break_a_line_and_is_whole_in_the_record(name, prefix, caplog):
    with log_as(name):
        logger.info("stops")
        logger.info("100 % done")
        logger.info("%d %% of %s", 5, "it", extra={"also": 1})
    assert [record.getMessage() for record in caplog.records] == [
        f"{prefix}: stops",
        f"{prefix}: 100 % done",
        f"{prefix}: 5 % of it",
    ]
    assert {record.consumer for record in caplog.records} == {name}
    assert caplog.records[-1].also == 1
    assert [record.msg for record in caplog.records][::2] == ["%s: stops", "%s: %d %% of %s"]


def test_a_record_has_the_file_and_line_of_its_log_call(caplog):
    with log_as("orders"):
        logger.info("one")
        logger.log(logging.WARNING, "two")
        logger.warning("three", exc_info=ValueError("x"))
    assert len(caplog.records) == 3
    assert {(record.filename, record.funcName) for record in caplog.records} == {
        ("test_log.py", "test_a_record_has_the_file_and_line_of_its_log_call")
    }


def test_an_error_can_be_logged_where_it_is_handled(caplog):
    try:
        raise ValueError("planted")  # noqa: TRY301
    except ValueError:
        logger.exception("x")
    assert "ValueError: planted" in caplog.text
    logger.error("y", exc_info=True)  # noqa: LOG014
    assert caplog.records[-1].message == "y"


def test_a_format_with_the_consumer_works_for_lines_without_one(caplog):
    logger.info("100 % done")
    assert logging.Formatter("%(consumer)s %(message)s").format(caplog.records[0]) == "None 100 % done"


def test_a_block_that_is_left_in_another_context_raises_nothing():
    """This happens if a coroutine is destroyed after its event loop has ended."""
    block = log_as("orders")
    copy_context().run(block.__enter__)
    block.__exit__(None, None, None)


@pytest.mark.no_cover  # only reads the source
def test_every_logger_of_the_package_names_the_consumer():
    sources = [path.read_text() for path in Path(push_to_poll_client.__file__).parent.rglob("*.py")]
    calls = [line for source in sources for line in source.splitlines() if "getLogger(" in line]
    assert sorted(line.strip() for line in calls if "ConsumerLog(" not in line) == [
        '_logger = logging.getLogger("httpx")',
        'logging.getLogger("push_response")  # otherwise redis-py creates a logger that writes to the terminal',
    ]
