"""The push-to-poll consumer loop, done right, once.

A push says when to ask, the poll says what, each message is processed once. Each layer knows only those above it:

    _types, _exceptions, _text, _http  what the parts speak of, and manners that they share
    _protocols                         what they are for each other
    _schedule                          when
    _processing/                       once: what becomes of messages
    _polling/                          what next: polls, one at a time, from page to page
    feeds/, listeners/, stores/        what, who said so, where was I; they know nothing of each other
    _channel, _run                     one channel, one run
    _assembly, _opening                how the parts of a session are put together, and from when to when
    _consumer                          the only place where the parts meet
    cli/, testing/                     for the shell, and for tests
"""

from push_to_poll_client._consumer import Consumer
from push_to_poll_client._dead_letters import DeadLetters, Retried
from push_to_poll_client._exceptions import (
    ChainRestart,
    ContentChanged,
    CursorExpired,
    DeadLetterMessage,
    FeedError,
    FeedGone,
    FeedRefused,
    ListenerError,
    MessageVerdict,
    OwnershipLost,
    ProcessError,
    PushToPollError,
    RetryMessage,
    SkipMessage,
    StopConsumer,
    StoreBusy,
    StoreError,
    StoreMismatch,
    SubscriptionGone,
    Throttled,
    UndecodableMessage,
)
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._options import Resync
from push_to_poll_client._protocols import Channel, Feed, Listener, Session, Store, TransactionalSession
from push_to_poll_client._schedule import Mode
from push_to_poll_client._status import (
    Counters,
    FailingMessage,
    Gap,
    ListenerStatus,
    PollResult,
    Resynced,
    Status,
)
from push_to_poll_client._types import (
    Cursor,
    DeadLetter,
    Fate,
    FetchRequest,
    Message,
    Page,
    Push,
    Record,
    RecordState,
    SavedCursor,
    UnreadableMessage,
)
from push_to_poll_client.feeds import AtomEntry, AtomFeed, CloudEvent, DurableStreamFeed, HTTPFeed, PagedFeed
from push_to_poll_client.listeners import (
    Connection,
    ConnectionListener,
    JSONHint,
    LongPollListener,
    PullWakeListener,
    ServerSentEvent,
    SSEListener,
    Verdict,
    WebhookAnswer,
    WebhookCounters,
    WebhookListener,
    WebhookRequest,
    WebSocketListener,
)
from push_to_poll_client.stores import MemoryStore, SQLiteStore

__all__ = [
    "AtomEntry",
    "AtomFeed",
    "ChainRestart",
    "Channel",
    "CloudEvent",
    "Connection",
    "ConnectionListener",
    "Consumer",
    "ContentChanged",
    "Counters",
    "Cursor",
    "CursorExpired",
    "DeadLetter",
    "DeadLetterMessage",
    "DeadLetters",
    "DurableStreamFeed",
    "FailingMessage",
    "Fate",
    "Feed",
    "FeedError",
    "FeedGone",
    "FeedRefused",
    "FetchRequest",
    "Gap",
    "HTTPFeed",
    "Hooks",
    "JSONHint",
    "Listener",
    "ListenerError",
    "ListenerStatus",
    "LongPollListener",
    "MemoryStore",
    "Message",
    "MessageVerdict",
    "Mode",
    "OwnershipLost",
    "Page",
    "PagedFeed",
    "PollResult",
    "ProcessError",
    "PullWakeListener",
    "Push",
    "PushToPollError",
    "Record",
    "RecordState",
    "Resync",
    "Resynced",
    "Retried",
    "RetryMessage",
    "SQLiteStore",
    "SSEListener",
    "SavedCursor",
    "ServerSentEvent",
    "Session",
    "SkipMessage",
    "Status",
    "StopConsumer",
    "Store",
    "StoreBusy",
    "StoreError",
    "StoreMismatch",
    "SubscriptionGone",
    "Throttled",
    "TransactionalSession",
    "UndecodableMessage",
    "UnreadableMessage",
    "Verdict",
    "WebSocketListener",
    "WebhookAnswer",
    "WebhookCounters",
    "WebhookListener",
    "WebhookRequest",
]
