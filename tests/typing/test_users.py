"""What a user writes, read by mypy alone: it must pass `--strict` without a cast or an ignore."""

from collections.abc import Awaitable

from push_to_poll_client import (
    Channel,
    Consumer,
    FetchRequest,
    HTTPFeed,
    MemoryStore,
    Message,
    Page,
    PollResult,
    Push,
    ServerSentEvent,
    SQLiteStore,
    SSEListener,
    Status,
    Verdict,
    WebSocketListener,
)


class OwnFeed:
    async def fetch(self, request: FetchRequest, /) -> Page:
        if request.cursor is not None:
            return Page()
        return Page([Message("1", {"total": 12})], cursor="1", next="1")


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


def hint(message: str | bytes) -> Push | None:
    return Push(cursor=str(message)) if message else None


def hint_of_an_event(event: ServerSentEvent) -> Push | None:
    return None if event.event == "ping" else Push(cursor=event.id, topics=(event.data,))


def classify(error: Exception) -> Verdict | None:
    return Verdict.GIVE_UP if isinstance(error, PermissionError) else None


async def token() -> str:
    return "secret"


async def function(message: Message) -> None:
    print(message.cursor)


def plain_function(message: Message) -> None:
    print(message.key)


def awaitable(message: Message) -> Awaitable[None]:
    return function(message)


async def use() -> tuple[PollResult, Status]:
    Plain(FeedThatNamesItsArgument(), store=MemoryStore(), listeners=[OwnListener()])
    Consumer(OwnFeed(), store=MemoryStore(), process=plain_function)
    Consumer(OwnFeed(), store=MemoryStore(), process=awaitable)
    Consumer(OwnFeed(), store=MemoryStore(), process=function)
    async with Async(
        HTTPFeed("https://shop.example/orders", auth=("key", "secret")),
        store=SQLiteStore("orders.db"),
        listeners=[
            WebSocketListener("wss://shop.example/orders/push", hint=hint),
            SSEListener("https://shop.example/events", hint=hint_of_an_event, token=token, classify=classify),
        ],
    ) as orders:
        orders.wake()
        return await orders.poll_now(timeout=None), orders.status()
