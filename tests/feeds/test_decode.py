"""`decode=`: decoded data, and data that does not fit."""

import datetime as dt
import enum
import json
import logging
import traceback
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, NewType, TypedDict

import httpx
import msgspec
import pydantic
import pytest

from push_to_poll_client import (
    CloudEvent,
    Consumer,
    DecodeError,
    FetchRequest,
    Hooks,
    HTTPFeed,
    MemoryStore,
    Message,
    PagedFeed,
    ProcessError,
)
from push_to_poll_client.durable_streams import DurableStreamFeed
from push_to_poll_client.feeds._data_decoder import DataDecoder
from push_to_poll_client.feeds.paged import Entries, OldestFirst, from_body, to_query

pytestmark = pytest.mark.anyio

URL = "https://shop.example/orders"
CANARY = "s3cr3t-c4n4ry"


class Order(msgspec.Struct):
    total: int
    state: Literal["new", "paid"] = "new"
    at: dt.datetime | None = None


class State(enum.Enum):
    NEW = "new"


class Tagged(msgspec.Struct, tag="order", forbid_unknown_fields=True):
    state: State = State.NEW
    counts: dict[str, int] = {}


@dataclass
class Refund:
    total: int

    def __post_init__(self):
        if self.total == 0:
            raise ArithmeticError("nothing to refund")


class Line(TypedDict):
    total: int


class Pair(NamedTuple):
    first: int
    second: str


Number = NewType("Number", int)


class Model(pydantic.BaseModel):
    total: int
    lines: list[int] = []


class Strict(pydantic.BaseModel, strict=True):
    at: dt.datetime


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


class Owner(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")


class Broken(pydantic.BaseModel):
    total: int

    @pydantic.field_validator("total")
    @classmethod
    def check(cls, total):
        raise ArithmeticError("a bug")


class OtherModel:
    """A class of another library with the same method."""

    @classmethod
    def model_validate_json(cls, text):
        raise ValueError("it is never valid")


class HasModel(msgspec.Struct):
    order: Model
    anything: object = None


class Plain:
    """A class that no decoder supports."""


class HasPlain(msgspec.Struct):
    plain: list["Plain"] = []
    itself: "HasPlain | None" = None


class NamesNothing(msgspec.Struct):
    of: "Nothing"  # noqa: F821  # a mistake of the user


def doubled(data):
    return data["total"] * 2


class CallableObject:
    def __call__(self, data):
        return data["total"]


async def asynchronous(data):
    return data


NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("decode", "data", "decoded"),
    [
        (Order, {"total": 3, "at": "2026-01-01T12:00:00Z", "more": 1}, Order(3, at=NOON)),
        (Refund, {"total": 3}, Refund(3)),
        (Line, {"total": 3, "more": 1}, {"total": 3}),
        (Pair, [1, "x"], Pair(1, "x")),
        (Number, 7, 7),
        (int, 12345678901234567890123, 12345678901234567890123),
        (list[Order], [{"total": 3}], [Order(3)]),
        (dict[int, Refund], {"7": {"total": 3}}, {7: Refund(3)}),
        (Order | None, None, None),
        (dict[str, object], {"a": [1]}, {"a": [1]}),
        (Any, {"a": 1}, {"a": 1}),
        (Model, {"total": 3}, Model(total=3)),
        (Strict, {"at": "2026-01-01T12:00:00Z"}, Strict(at=NOON)),
        (list[Model], [{"total": 3}], [Model(total=3)]),
        (HasModel, {"order": {"total": 3}, "anything": [1]}, HasModel(Model(total=3), [1])),
        (pydantic.TypeAdapter(list[Model]).validate_python, [{"total": 3}], [Model(total=3)]),
        (doubled, {"total": 3}, 6),
        (partial(int, base=10), "12", 12),
        (CallableObject(), {"total": 3}, 3),
    ],
)
def test_the_data_becomes_what_decode_says(decode, data, decoded):
    assert DataDecoder(decode).decode(data, Message("1")) == decoded


@pytest.mark.parametrize(
    ("decode", "data", "text"),
    [
        (Order, {"total": CANARY}, "does not fit Order: Expected `int`, got `str` - at `$.total`"),
        (Order, {"total": 1, "state": CANARY}, "does not fit Order: Invalid enum value - at `$.state`"),
        (Order, {"total": 1, "state": f"' - at `$.x`' {CANARY}"}, "Invalid enum value - at `$.state`"),
        (Order, {"total": 1, "at": CANARY}, "Invalid RFC3339 encoded datetime - at `$.at`"),
        (Order, {}, "Object missing required field `total`"),
        (Order, None, "Expected `object`, got `null`"),
        (State, CANARY, "does not fit State: Invalid enum value; correct decode="),
        (Tagged, {"type": CANARY}, "Invalid value - at `$.type`"),
        (Tagged, {"type": "order", "state": CANARY}, "Invalid enum value - at `$.state`"),
        (Tagged, {"type": "order", "counts": {CANARY: ""}}, "Expected `int`, got `str` - at `$.counts[...]`"),
        (list[Order], [{"total": 1}, {}], "field `total` - at `$[1]`"),
        (Refund, {"total": 0}, "does not fit Refund: ArithmeticError: nothing to refund"),
        (Model, {"total": CANARY}, "does not fit Model: total: Input should be a valid integer, unable to parse"),
        (Model, {"total": 1, "lines": [1, CANARY]}, "lines.1: Input should be a valid integer"),
        (Model, {"lines": [CANARY] * 9}, "lines.1: Input should be a valid integer, unable to parse string as an"),
        (Model, {"lines": [CANARY] * 9}, "; 7 more; correct decode=, or report it to the publisher"),
        (
            Model,
            {"total": 1, "lines": [CANARY] * 101},
            "does not fit Model: it has 101 invalid fields; correct decode=",
        ),
        (Model, CANARY, "the data: Input should be an object"),
        (Owner, {"pet": {"kind": CANARY}}, "does not fit Owner: pet: union_tag_invalid"),
        (Broken, {"total": 1}, "does not fit Broken: ArithmeticError: a bug"),
        (OtherModel, {"total": 1}, "does not fit OtherModel: it is never valid; correct decode="),
        (list[Model], [{"total": CANARY}], "total: Input should be a valid integer"),
        (HasModel, {"order": {"total": CANARY}}, "unable to parse string as an integer - at `$.order`"),
    ],
)
def test_data_that_does_not_fit_fails_with_its_place_and_without_itself(decode, data, text):
    with pytest.raises(DecodeError) as caught:
        DataDecoder(decode).decode(data, Message("7"))
    assert str(caught.value).startswith("the data of message '7' does not fit ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown
    assert "errors.pydantic.dev" not in shown


def test_an_error_of_a_function_is_the_cause_of_the_failure():
    with pytest.raises(
        DecodeError, match="decode= failed for the data of message '7': KeyError: 'total'"
    ) as caught:
        DataDecoder(doubled).decode({}, Message("7"))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_can_say_itself_why_the_data_cannot_be_read():
    own = DecodeError("its currency is unknown")

    def refuse(data):
        raise own

    with pytest.raises(DecodeError) as caught:
        DataDecoder(refuse).decode({}, Message("7"))
    assert caught.value is own


def feeds(decode, *answers, **kwargs):
    """The three feeds, each on a server with orders of these totals, and then none."""
    entries = [{"id": str(number), "total": total} for number, total in enumerate(answers, 1)]
    events = [{"id": entry["id"], "source": "s", "data": {"total": entry["total"]}} for entry in entries]

    def answer(request):
        query, stream = request.url.params, {"stream-next-offset": "1", "stream-up-to-date": "true"}
        if "paged" in request.url.path:
            return httpx.Response(200, json={"data": [] if "after" in query else entries, "next": "end"})
        if "stream" in request.url.path:
            first = query["offset"] == "-1"
            return httpx.Response(200, json=entries if first else [], headers=stream)
        return httpx.Response(200, json=[] if "lastEventId" in query else events)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    pages = OldestFirst(cursor=from_body("next"), send=to_query("after"))
    yield HTTPFeed(URL, decode=decode, client=client)
    yield PagedFeed(f"{URL}/paged", entries=Entries("data"), pages=pages, decode=decode, client=client)
    yield DurableStreamFeed(f"{URL}/stream", decode=decode, client=client)


KINDS = pytest.mark.parametrize("kind", range(3), ids=["http", "paged", "stream"])


def feed_of(kind, decode, *answers):
    return list(feeds(decode, *answers))[kind]


class Totals(Consumer):
    """Record the totals of orders."""

    def __init__(self, feed, **kwargs):
        super().__init__(feed, **{"store": MemoryStore(), "name": "orders", **kwargs})
        self.totals = []

    async def process(self, message):
        self.totals.append(message.data.total)


class Failures(Hooks):
    def __init__(self):
        self.attempts = []

    def message_failed(self, message, error, attempt, fate):
        self.attempts.append((message.id, type(error), attempt, str(fate)))


@KINDS
@pytest.mark.parametrize("decode", [Order, Model])
async def test_messages_have_decoded_data_which_is_made_when_it_is_read_and_kept(kind, decode):
    made = []

    def counted(data):
        made.append(data)
        return pydantic.TypeAdapter(decode).validate_python(data) if decode is Model else Order(data["total"])

    page = await feed_of(kind, counted, 5, 6).fetch(FetchRequest())
    assert made == []
    first, second = page.messages
    assert first.data is first.data
    assert (first.data.total, second.data.total, len(made)) == (5, 6, 2)
    kept = json.loads(first.raw)
    assert kept.get("data", kept)["total"] == 5


@KINDS
@pytest.mark.parametrize("decode", [Order, Model])
async def test_data_that_does_not_fit_is_a_dead_letter_at_once_and_a_retry_decodes_it_again(kind, decode, caplog):
    caplog.set_level(logging.DEBUG)
    hooks, store = Failures(), MemoryStore()
    consumer = Totals(feed_of(kind, decode, 5, CANARY, 7), store=store, on_failure="dead_letter", hooks=hooks)
    await consumer.catch_up()
    assert consumer.totals == [5, 7]
    assert [failed[1:] for failed in hooks.attempts] == [(DecodeError, 1, "dead_letter")]
    (letter,) = await consumer.dead_letters.list()
    assert json.loads(letter.raw) in (
        {"id": "2", "total": CANARY},
        {"id": "2", "source": "s", "data": {"total": CANARY}},
    )
    assert "does not fit" in letter.error
    assert CANARY not in letter.error + letter.traceback + caplog.text

    again = Totals(feed_of(kind, decode), store=store)
    assert (await again.dead_letters.retry()).failed == 1

    class Anything(msgspec.Struct):
        total: int | str

    corrected = Totals(feed_of(kind, Anything), store=store)
    assert (await corrected.dead_letters.retry()).processed == 1
    assert corrected.totals == [CANARY]


@KINDS
async def test_data_that_does_not_fit_stops_the_consumer_before_it_or_is_skipped(kind):
    consumer = Totals(feed_of(kind, Order, 5, "six", 7))
    with pytest.raises(ProcessError) as caught:
        await consumer.catch_up()
    assert isinstance(caught.value.__cause__, DecodeError)
    skipping = Totals(feed_of(kind, Order, 5, "six", 7), on_failure="skip")
    await skipping.catch_up()
    assert (consumer.totals, skipping.totals) == ([5], [5, 7])


@KINDS
async def test_data_that_is_not_read_is_not_decoded(kind):
    processed = []
    consumer = Consumer(
        feed_of(kind, Order, 5, "six"), store=MemoryStore(), name="ids", process=lambda m: processed.append(m.id)
    )
    await consumer.catch_up()
    assert len(processed) == 2


@KINDS
async def test_an_ordering_key_of_data_that_does_not_fit_fails_as_undecodable(kind):
    hooks = Failures()
    consumer = Totals(
        feed_of(kind, Order, 5, "six", 7),
        concurrency=2,
        ordering_key=lambda message: message.data.total,
        on_failure="dead_letter",
        hooks=hooks,
    )
    await consumer.catch_up()
    assert sorted(consumer.totals) == [5, 7]
    assert [failed[1:] for failed in hooks.attempts] == [(DecodeError, 1, "dead_letter")]


@pytest.mark.parametrize(
    ("decode", "text"),
    [
        ("Order", "decode must be a type, a pydantic model or a plain function, got 'Order'"),
        (Model(total=1), "decode must be a type, a pydantic model or a plain function, got Model"),
        (asynchronous, "decode must be a type, a pydantic model or a plain function, got <function asynchronous"),
        (Plain, "decode cannot make a Plain; pass a msgspec Struct"),
        (HasPlain, "decode cannot make a Plain; pass a msgspec Struct"),
        (list[Plain], "decode cannot make a Plain; pass a msgspec Struct"),
        (NamesNothing, "decode cannot be .*NameError: name 'Nothing' is not defined"),
        (Order | Line, "decode cannot be .*Type unions may not contain more than one"),
    ],
)
@KINDS
def test_a_decode_that_cannot_work_is_a_type_error_at_construction(kind, decode, text):
    with pytest.raises(TypeError, match=text):
        feed_of(kind, decode)


async def test_a_deletion_without_data_fits_only_what_may_be_null():
    deletion = b'{"id": "1", "source": "s", "subject": "7", "method": "DELETE"}'
    assert CloudEvent.from_json(deletion, decode=Order | None).data is None
    event = CloudEvent.from_json(deletion, decode=Order)
    assert event.deleted
    with pytest.raises(DecodeError, match="Expected `object`, got `null`"):
        event.data  # noqa: B018  # it raises


async def test_binary_data_of_an_event_is_given_to_decode():
    event = b'{"id": "1", "data_base64": "aGk="}'
    assert CloudEvent.from_json(event, decode=bytes).data == b"hi"
    assert CloudEvent.from_json(event, decode=bytes.decode).data == "hi"


async def test_readable_events_of_a_page_with_an_unreadable_one_are_decoded():
    page = b'[{"id": "1", "data": {"total": 5}}, {"id": 2}, {"id": "3", "data": {"total": "x"}}]'
    client = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(200, content=page)))
    first, second, third = (await HTTPFeed(URL, decode=Order, client=client).fetch(FetchRequest())).messages
    assert (first.data, second.error is None, third.error) == (Order(5), False, None)
    with pytest.raises(DecodeError, match="the data of message '3' does not fit Order"):
        third.data  # noqa: B018  # it raises


@pytest.mark.parametrize(("kind", "data"), [("lines", "12"), ("ndjson", 12), ("bytes", b"12\n")])
async def test_messages_of_any_kind_of_stream_are_decoded(kind, data):
    headers = {"stream-next-offset": "3", "stream-up-to-date": "true", "content-type": "text/plain"}
    answer = httpx.Response(200, content=b"12\n", headers=headers)
    client = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: answer))
    feed = DurableStreamFeed(URL, messages=kind, decode=lambda data: (data, "decoded"), client=client)
    (message,) = (await feed.fetch(FetchRequest())).messages
    assert message.data == (data, "decoded")
