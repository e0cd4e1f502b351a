"""Consume another service's event feed.

A push says when to poll, the poll gets the messages, and each message is processed once. Imports run one way: a
module of this list may import only modules above it or to its left in its line.

    _version, _lazy_exports                         the version; public names imported when they are used
    _event_loop, _secrets, _validation              event loops, secrets to mask, checks of arguments
    _first_polls                                    limit of first polls when many consumers start
    _json, _log                                     JSON, log lines
    _exceptions, _types, _protocols                 shared by all parts
    _http/                                          HTTP for feeds and listeners
    _schedule                                       when to poll
    _status, _channels, _hooks, _options            status, push channels, hooks, options
    _work_queue, _failure_log                       order of messages, log of failures
    _progress, _handlers, _retry                    one message: from the handler to the commit
    _poll_state, _fetching, _position               state, fetches and start of a poll
    _workers, _processor, _dead_letters             one page
    _poller, _polls                                 one poll, and one poll at a time
    _lifecycle, _runner, _consumer                  a session; the loop of run(); the class on top
    feeds/, listeners/, stores/                     adapters: they do not import each other or the core
    durable_streams/                                a feed and listeners of one protocol, above the adapters
    cli/, testing/                                  for the shell, and for tests
"""

from typing import TYPE_CHECKING

from push_to_poll_client._consumer import Consumer
from push_to_poll_client._dead_letters import DeadLetters, RetryResult
from push_to_poll_client._exceptions import (
    CommitInDoubt,
    ContentChanged,
    CursorExpired,
    DeadLetterMessage,
    DecodeError,
    FeedError,
    FeedGone,
    FeedRefused,
    HandlerDecision,
    ListenerError,
    OwnershipLost,
    PagesChanged,
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
)
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._lazy_exports import lazy_exports
from push_to_poll_client._options import Resync
from push_to_poll_client._protocols import (
    Channel,
    Feed,
    LeasedSession,
    Listener,
    Session,
    Store,
    TransactionalSession,
)
from push_to_poll_client._schedule import Mode
from push_to_poll_client._status import (
    Counters,
    FailingMessage,
    Gap,
    ListenerStatus,
    PollResult,
    ResyncEvent,
    Status,
)
from push_to_poll_client._types import (
    Cursor,
    DeadLetter,
    FailureAction,
    FetchRequest,
    Message,
    Page,
    Push,
    Record,
    SavedCursor,
    Settlement,
    UnreadableMessage,
)
from push_to_poll_client._version import __version__

if TYPE_CHECKING:
    from push_to_poll_client.feeds import AtomEntry, AtomFeed, CloudEvent, Entry, HTTPFeed, PagedFeed
    from push_to_poll_client.listeners import (
        Connection,
        ConnectionListener,
        JSONHint,
        LongPollListener,
        ReconnectAction,
        ServerSentEvent,
        SSEListener,
        WebhookCounters,
        WebhookListener,
        WebhookRequest,
        WebhookResponse,
        WebSocketListener,
    )
    from push_to_poll_client.stores import MemoryStore, SQLiteStore
else:
    from push_to_poll_client import feeds, listeners, stores

    _, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "feeds": feeds.__all__,
            "listeners": listeners.__all__,
            "stores": stores.__all__,
        },
    )

__all__ = [
    "AtomEntry",
    "AtomFeed",
    "Channel",
    "CloudEvent",
    "CommitInDoubt",
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
    "DecodeError",
    "Entry",
    "FailingMessage",
    "FailureAction",
    "Feed",
    "FeedError",
    "FeedGone",
    "FeedRefused",
    "FetchRequest",
    "Gap",
    "HTTPFeed",
    "HandlerDecision",
    "Hooks",
    "JSONHint",
    "LeasedSession",
    "Listener",
    "ListenerError",
    "ListenerStatus",
    "LongPollListener",
    "MemoryStore",
    "Message",
    "Mode",
    "OwnershipLost",
    "Page",
    "PagedFeed",
    "PagesChanged",
    "PollResult",
    "ProcessError",
    "Push",
    "PushToPollError",
    "ReconnectAction",
    "Record",
    "Resync",
    "ResyncEvent",
    "RetryMessage",
    "RetryResult",
    "SQLiteStore",
    "SSEListener",
    "SavedCursor",
    "ServerSentEvent",
    "Session",
    "Settlement",
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
    "UnreadableMessage",
    "WebSocketListener",
    "WebhookCounters",
    "WebhookListener",
    "WebhookRequest",
    "WebhookResponse",
    "__version__",
]
