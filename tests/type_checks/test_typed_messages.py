"""Messages have the type of their feed if the user declares it; a mismatch is a type error.

mypy and pyright read this file (`make lint`), and report each line with an ignore that would pass without it.
"""

# pyright reports a missing attribute with two more rules.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, assert_type

import msgspec
import pydantic
import pytest

from push_to_poll_client import (
    AtomEntry,
    AtomFeed,
    CloudEvent,
    Consumer,
    Entry,
    FailureAction,
    Feed,
    FetchRequest,
    Hooks,
    HTTPFeed,
    MemoryStore,
    Message,
    Page,
    PagedFeed,
    Settlement,
    UnreadableMessage,
)
from push_to_poll_client.durable_streams import DurableStreamFeed
from push_to_poll_client.feeds.paged import Entries, OldestFirst, from_body, to_query
from push_to_poll_client.testing import FakeFeed

STORE = MemoryStore()
EVENTS = HTTPFeed("https://shop.example/orders")
NEWS = AtomFeed("https://shop.example/news")
STREAM = DurableStreamFeed("https://shop.example/stream")
PAGED = PagedFeed(
    "https://shop.example/changes",
    entries=Entries("data", type="type"),
    pages=OldestFirst(cursor=from_body("next"), send=to_query("after")),
)


# Code of users


class Orders(Consumer[Entry]):
    async def process(self, message: Entry) -> None:
        assert_type(message.type, str)


class Batches(Consumer[CloudEvent]):
    def process_batch(self, messages: Sequence[CloudEvent]) -> None:
        assert_type(messages[0].source, str)


class News(Consumer[AtomEntry]):
    async def process(self, message: AtomEntry) -> None:
        print(message.title)


class AnyMessages(Consumer):
    async def process(self, message: Message) -> None:
        assert_type(message.data, Any)


class Sale(Message):
    """A user's message class."""

    @property
    def cents(self) -> int:
        return 100


class Sales:
    """A user's feed with typed messages."""

    async def fetch(self, request: FetchRequest) -> Page[Sale]:
        return Page([Sale("1")], cursor="1")


class Counts(Hooks[Entry]):
    def message_started(self, message: Entry) -> None:
        print(message.type)

    def message_failed(
        self, message: Entry | UnreadableMessage, error: Exception, attempt: int, action: FailureAction
    ) -> None:
        if isinstance(message, Entry):
            print(message.type)


class CountsAny(Hooks):
    def message_failed(self, message: Message, error: Exception, attempt: int, action: FailureAction) -> None:
        print(message.id)


async def total(message: Sale) -> None:
    print(message.cents)


async def any_message(message: Message) -> None:
    print(message.id)


def policy(message: Entry | UnreadableMessage, error: Exception) -> Literal["skip", "dead_letter"]:
    return "skip" if isinstance(message, Entry) and message.deleted else "dead_letter"


def run_any(*consumers: Consumer) -> None:
    """Functions that run, wake or stop consumers accept any type of messages."""


def test_valid_code_passes_the_type_checkers() -> None:
    typed = Orders(
        PAGED,
        store=STORE,
        concurrency=4,
        ordering_key=lambda m: m.data["customer"] if m.type else m.id,
        dedupe_key=lambda m: m.type + m.id,
        fingerprint=lambda m: m.raw,
        on_failure=policy,
        hooks=Counts(),
    )
    run_any(typed, Batches(EVENTS, store=STORE), News(NEWS, store=STORE), AnyMessages(STREAM, store=STORE))
    run_any(AnyMessages(PAGED, store=STORE, hooks=CountsAny()), Orders(PAGED, store=STORE, hooks=CountsAny()))
    sales = Consumer(Sales(), store=STORE, process=total)
    assert_type(sales, Consumer[Sale])
    run_any(sales, Consumer(Sales(), store=STORE, process=any_message))


def test_each_feed_declares_the_type_of_its_messages() -> None:
    events: Feed[CloudEvent] = EVENTS
    news: Feed[AtomEntry] = NEWS
    paged: Feed[Entry] = PAGED
    fake: FakeFeed[Entry] = FakeFeed()
    fake.publish(Entry("1", {"customer": 7}, type="paid"))
    entries: list[Feed[Entry]] = [paged, fake]
    feeds: list[Feed] = [events, news, *entries, STREAM, Sales()]
    assert all(inspect.iscoroutinefunction(feed.fetch) for feed in feeds)


def test_generic_classes_can_be_made_by_their_generic_names() -> None:
    assert Page[Sale](cursor="1") == Page(cursor="1")
    assert FakeFeed[Entry]().newest == FakeFeed().newest


# The type of the data, given by `decode=`


class Order(msgspec.Struct):
    customer: str
    cents: int


@dataclass
class Refund:
    cents: int


class Line(TypedDict):
    article: str


class Model(pydantic.BaseModel):
    customer: str


def customer_of(data: Any) -> str:
    return str(data["customer"])


class TypedOrders(Consumer[CloudEvent[Order]]):
    async def process(self, message: CloudEvent[Order]) -> None:
        assert_type(message.data, Order)
        assert_type(message.data.cents, int)


class TypedEntries(Consumer[Entry[Model]]):
    def process(self, message: Entry[Model]) -> None:
        assert_type(message.data.customer, str)


def paged(decode: type[Model]) -> PagedFeed[Model]:
    entries, pages = Entries(), OldestFirst(cursor=from_body("next"), send=to_query("after"))
    return PagedFeed("https://shop.example/changes", entries=entries, pages=pages, decode=decode)


def test_decode_gives_the_data_its_type() -> None:
    url = "https://shop.example/orders"
    orders = HTTPFeed(url, decode=Order)
    assert_type(orders, HTTPFeed[Order])
    assert_type(HTTPFeed(url), HTTPFeed[Any])
    assert_type(HTTPFeed(url, decode=Refund), HTTPFeed[Refund])
    assert_type(HTTPFeed(url, decode=Line), HTTPFeed[Line])
    assert_type(HTTPFeed(url, decode=list[Order]), HTTPFeed[list[Order]])
    assert_type(HTTPFeed(url, decode=customer_of), HTTPFeed[str])
    assert_type(CloudEvent.from_json(b'{"id": "1"}', decode=Order), CloudEvent[Order])
    stream = DurableStreamFeed(url, decode=Order)
    feeds: list[Feed[Message[Order]]] = [stream, orders]
    assert len(feeds) == 2
    run_any(
        TypedOrders(orders, store=STORE, concurrency=2, ordering_key=lambda m: m.data.customer),
        TypedOrders(EVENTS, store=STORE),  # its data is Any
        TypedEntries(paged(Model), store=STORE),
        AnyMessages(orders, store=STORE),
        Batches(orders, store=STORE),
        Consumer(stream, store=STORE, process=any_message, dedupe_key=lambda m: m.data.customer),
    )


# Code that must fail the type check


class WrongMessage(Consumer[Entry]):
    async def process(self, message: CloudEvent) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        print(message.id)


class WrongHook(Hooks[Entry]):
    """The hook also gets unreadable messages, which have no `type`."""

    def message_settled(self, message: Entry, state: Settlement) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        print(message.type)


class NoMessages(Consumer[str]):  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeArguments]
    pass


def of_entries_alone(message: Entry, error: Exception) -> Literal["skip", "stop"]:
    return "skip" if message.deleted else "stop"


def mistakes() -> None:
    """Only for type checkers; not called."""
    Orders(EVENTS, store=STORE)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Batches(PAGED, store=STORE)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    News(STREAM, store=STORE)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Consumer(PAGED, store=STORE, process=total)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Batches(EVENTS, store=STORE, hooks=Counts())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Orders(PAGED, store=STORE, dedupe_key=lambda m: m.source)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    Orders(PAGED, store=STORE, ordering_key=lambda m: m.customer)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    AnyMessages(PAGED, store=STORE, ordering_key=lambda m: m.type)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    Orders(PAGED, store=STORE, on_failure=of_entries_alone)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    TypedOrders(HTTPFeed("https://shop.example", decode=Refund), store=STORE)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    TypedEntries(PAGED, store=STORE, dedupe_key=lambda m: m.data.cents)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    HTTPFeed("https://shop.example", decode=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FakeFeed[Entry]().publish(Message("1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("consumer", [WrongMessage, NoMessages])
def test_types_are_for_type_checkers_and_nothing_is_checked_at_run_time(consumer: type[Consumer]) -> None:
    consumer(EVENTS, store=STORE, process=any_message)
