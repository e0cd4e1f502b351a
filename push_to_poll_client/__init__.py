"""The push-to-poll consumer loop, done right, once.

A push says when to ask, the poll says what, each message is processed once. Imports run one way: each of
these modules may import only those above it and those to its left.

    _version                                        the version
    _event_loop, _secrets, _validation              event loops, secrets to mask, checks of arguments
    _first_pages                                    many consumers that start at once
    _json, _log                                     JSON, log lines
    _exceptions, _types, _protocols                 what all parts share
    _http/                                          HTTP, once, for feeds and listeners
    _schedule, _wakes                               when to poll
    _status, _channels, _hooks, _options            what a user sees, hears of and sets
    _work_queue, _failure_policy, _overlap          decisions about messages
    _progress, _fetching, _handlers, _retry         one message: from the feed to the commit
    _workers, _processor, _dead_letters             one page
    _position, _poller, _polls                      one poll, and one at a time
    _lifecycle, _consumer                           a session from its start to its end; where the parts meet
    feeds/, listeners/, stores/                     adapters, which know nothing of each other or of the core
    durable_streams/                                a family of its own, above feeds and listeners
    cli/, testing/                                  for the shell, and for tests
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
    StoreUnavailable,
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
from push_to_poll_client._version import __version__
from push_to_poll_client.durable_streams import DurableStreamFeed, PullWakeListener
from push_to_poll_client.feeds import AtomEntry, AtomFeed, CloudEvent, HTTPFeed, PagedFeed
from push_to_poll_client.listeners import (
    Connection,
    ConnectionListener,
    JSONHint,
    LongPollListener,
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
    "StoreUnavailable",
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
    "__version__",
]
