"""The push-to-poll consumer loop, done right, once.

A push says when to ask, the poll says what, each message is processed once. Each layer knows only those above it:

    _types, _exceptions, _text, _http  what the parts speak of, and manners that they share
    _schedule, _processor, _progress   when, once, and from then on
    feeds/, listeners/, stores/        what, who said so, where was I; they know nothing of each other
    _poller, _polls, _channel, _run    one poll, one at a time, one channel, one run
    _consumer                          the only place where the parts meet
    cli/, testing/                     for the shell, and for tests
"""

from push_to_poll_client._consumer import Consumer
from push_to_poll_client._exceptions import (
    ChainRestart,
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    ListenerError,
    MessageFailed,
    OwnershipLost,
    PushToPollError,
    StoreBusy,
    StoreError,
    StoreMismatch,
    Throttled,
    UndecodableMessage,
)
from push_to_poll_client._schedule import Mode
from push_to_poll_client._status import Counters, ListenerStatus, PollResult, Status
from push_to_poll_client._types import (
    Channel,
    Cursor,
    Feed,
    FetchRequest,
    Listener,
    Message,
    Page,
    Push,
    Record,
    RecordState,
    Session,
    Store,
    UnreadableMessage,
)
from push_to_poll_client.feeds import CloudEvent, HTTPFeed
from push_to_poll_client.listeners import ServerSentEvent, SSEListener, Verdict, WebSocketListener
from push_to_poll_client.stores import MemoryStore, SQLiteStore

__all__ = [
    "ChainRestart",
    "Channel",
    "CloudEvent",
    "Consumer",
    "Counters",
    "Cursor",
    "CursorExpired",
    "Feed",
    "FeedError",
    "FeedGone",
    "FeedRefused",
    "FetchRequest",
    "HTTPFeed",
    "Listener",
    "ListenerError",
    "ListenerStatus",
    "MemoryStore",
    "Message",
    "MessageFailed",
    "Mode",
    "OwnershipLost",
    "Page",
    "PollResult",
    "Push",
    "PushToPollError",
    "Record",
    "RecordState",
    "SQLiteStore",
    "SSEListener",
    "ServerSentEvent",
    "Session",
    "Status",
    "Store",
    "StoreBusy",
    "StoreError",
    "StoreMismatch",
    "Throttled",
    "UndecodableMessage",
    "UnreadableMessage",
    "Verdict",
    "WebSocketListener",
]
