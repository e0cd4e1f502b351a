"""Code of users, checked by mypy: it must pass `--strict` without a cast or an ignore."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Literal

import anyio

from push_to_poll_client import (
    Channel,
    Consumer,
    CursorExpired,
    DeadLetter,
    DeadLetterMessage,
    FailureAction,
    FetchRequest,
    Hooks,
    HTTPFeed,
    MemoryStore,
    Message,
    Page,
    PollResult,
    Push,
    ReconnectAction,
    Resync,
    RetryMessage,
    RetryResult,
    ServerSentEvent,
    Settlement,
    SQLiteStore,
    SSEListener,
    Status,
    WebSocketListener,
)
from push_to_poll_client.durable_streams import DurableStreamFeed


class OwnFeed:
    async def fetch(self, request: FetchRequest, /) -> Page:
        if request.cursor is not None:
            return Page()
        return Page([Message("1", {"total": 12})], cursor="1", next_page="1")


class FeedThatNamesItsArgument:
    async def fetch(self, request: FetchRequest) -> Page:
        return Page(retry_after=60.0)


class OwnListener:
    async def listen(self, channel: Channel, /) -> None:
        channel.up()
        channel.wake(Push(cursor="7"))
        channel.down(OSError("reset"))


class Async(Consumer):
    async def process(self, message: Message) -> None:
        print(message.id, message.data)


class Plain(Consumer):
    def process(self, message: Message) -> None:
        print(message.id, message.data)


class Runs(Async):
    async def run(self) -> None:
        await super().run()


class Batches(Consumer):
    async def process_batch(self, messages: Sequence[Message]) -> None:
        if not messages[0].data:
            raise RetryMessage("busy", after=30)


class PlainBatches(Consumer):
    def process_batch(self, messages: Sequence[Message]) -> None:
        if not messages[0].data:
            raise DeadLetterMessage("empty")


class Counts(Hooks):
    def message_failed(self, message: Message, error: Exception, attempt: int, action: FailureAction) -> None:
        print(message.id, error, attempt, action)

    def message_settled(self, message: Message, state: Settlement) -> None:
        print(message.id, state)


class RestoringFeed(OwnFeed):
    async def latest(self) -> str | None:
        return "1"

    def restore(self, letter: DeadLetter, /) -> Message:
        return Message(letter.id, letter.raw, dedupe_key=letter.dedupe_key)


def policy(message: Message, error: Exception) -> Literal["skip", "dead_letter"]:
    return "skip" if isinstance(error, KeyError) else "dead_letter"


async def slow_policy(message: Message, error: Exception) -> Literal["stop", "skip"]:
    return "stop" if message.data else "skip"


def where(error: CursorExpired) -> Resync | None:
    return Resync(error.start, forget=True) if error.start else None


def hint(message: str | bytes) -> Push | None:
    return Push(cursor=str(message)) if message else None


def hint_of_an_event(event: ServerSentEvent) -> Push | None:
    return None if event.event == "ping" else Push(cursor=event.id, topics=(event.data,))


def classify(error: Exception) -> ReconnectAction | None:
    return ReconnectAction.GIVE_UP if isinstance(error, PermissionError) else None


async def token() -> str:
    return "secret"


async def function(message: Message) -> None:
    print(message.cursor)


def plain_function(message: Message) -> None:
    print(message.dedupe_key)


def awaitable(message: Message) -> Awaitable[None]:
    return function(message)


async def give_up_and_go_back() -> RetryResult:
    Batches(OwnFeed(), store=MemoryStore(), on_failure=slow_policy, batch_size=10, batch_wait=1.0)
    consumer = PlainBatches(
        RestoringFeed(),
        store=SQLiteStore("orders.db"),
        on_failure=policy,
        concurrency=4,
        ordering_key=lambda message: message.data["customer"],
        dedupe_key=lambda message: message.id,
        fingerprint=lambda message: message.raw,
        start="latest",
        on_cursor_expired=where,
        overlap=30.0,
        hooks=Counts(),
    )
    async with consumer:
        await consumer.rewind("inception", forget=True)
        await consumer.rewind(ago=3600)
        await consumer.replay("inception", "7")
        async for line in consumer.dead_letters.export():
            print(line.decode())
        for letter in await consumer.dead_letters.list():
            await consumer.dead_letters.drop(letter.dedupe_key)
        async for letter in consumer.dead_letters:
            await consumer.dead_letters.drop(letter.dedupe_key)
        return await consumer.dead_letters.retry()


async def transactional() -> None:
    store = SQLiteStore("bank.db", transactional=True)

    async def move(message: Message) -> None:
        store.connection.execute("UPDATE account SET cents = cents + ?", (message.data["cents"],))

    await Consumer(OwnFeed(), store=store, process=move, on_cursor_expired=Resync("inception", forget=False)).run()


async def run_in_a_task(consumer: Consumer) -> None:
    task = asyncio.create_task(consumer.run())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Runs(OwnFeed(), store=MemoryStore()).run)
        consumer.stop()
    await task


def run_alone(consumer: Consumer) -> None:
    anyio.run(consumer.run)
    asyncio.run(consumer.run())


async def use() -> tuple[PollResult, Status]:
    Plain(FeedThatNamesItsArgument(), store=MemoryStore(), listeners=[OwnListener()])
    Consumer(OwnFeed(), store=MemoryStore(), process=plain_function)
    Consumer(OwnFeed(), store=MemoryStore(), process=awaitable)
    Consumer(OwnFeed(), store=MemoryStore(), process=function)
    stream = DurableStreamFeed("https://shop.example/orders", messages="lines", max_wait=None)
    listener = SSEListener(stream.push_url, hint=stream.hint, auth=token)
    Consumer(stream, store=MemoryStore(), process=function, listeners=[listener], start="latest")
    async with Async(
        HTTPFeed("https://shop.example/orders", auth=("key", "secret")),
        store=SQLiteStore("orders.db"),
        listeners=[
            WebSocketListener("wss://shop.example/orders/push", hint=hint),
            SSEListener("https://shop.example/events", hint=hint_of_an_event, auth=token, classify=classify),
        ],
    ) as orders:
        orders.wake()
        await orders.catch_up()
        return await orders.poll_now(timeout=None), orders.status()
