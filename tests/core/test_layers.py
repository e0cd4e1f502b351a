"""The shape of the house: imports point one way, the public names are pinned."""

import ast
import tomllib
from pathlib import Path

import pytest

import push_to_poll_client
from push_to_poll_client import durable_streams, feeds, listeners, stores, testing

PACKAGE = Path(push_to_poll_client.__file__).parent

LAYERS = """
    _event_loop _validation _json _exceptions _types _protocols _http
    _schedule _wakes _work_queue
    _status _channels _hooks _options _failure_policy _overlap
    _progress _fetching _handlers _retry
    _workers _dead_letters _processor
    _position _poller _polls _lifecycle _consumer
""".split()  # noqa: SIM905  # read by people
"""The modules of the core. Each may import those before it, and no adapter."""

SHARED = {"_event_loop", "_validation", "_json", "_exceptions", "_types", "_protocols", "_http"}
"""What adapters may import too, which know nothing of each other."""

ADAPTERS = ("feeds", "listeners", "stores")

ABOVE_ADAPTERS = {"durable_streams": {"feeds", "listeners"}}
"""A family of its own: a feed, a listener and signatures."""

PACKAGES = {"_http"}
"""The layers of several modules."""

FREE = {"cli", "testing"}
"""They may import anything, and nothing may import them."""


def rooms():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").parts[0], path


def may_import(room):
    if room in LAYERS:
        return {*LAYERS[: LAYERS.index(room)], *({room} & PACKAGES)}
    if room in ADAPTERS:
        return SHARED | {room}
    if room in ABOVE_ADAPTERS:
        return SHARED | ABOVE_ADAPTERS[room] | {room}
    return {*LAYERS, *ADAPTERS, *ABOVE_ADAPTERS}


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "push_to_poll_client" and len(parts) > 1:
                yield parts[1]


@pytest.mark.no_cover  # it reads the package and runs none of it
def test_modules_import_only_allowed_modules():
    wrong = [
        f"{path.relative_to(PACKAGE)} ({room}) must not import {other}"
        for room, path in rooms()
        if room not in FREE
        for other in imported_rooms(path)
        if other not in may_import(room)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_is_listed_in_the_import_order():
    found = {room for room, _ in rooms()} - {"__init__"}
    assert found == {*LAYERS, *ADAPTERS, *ABOVE_ADAPTERS, *FREE}


PUBLIC = set(
    """
    Consumer CloudEvent HTTPFeed PagedFeed DurableStreamFeed AtomFeed AtomEntry SQLiteStore MemoryStore
    WebSocketListener SSEListener ServerSentEvent ConnectionListener Connection LongPollListener PullWakeListener
    WebhookListener WebhookRequest WebhookAnswer WebhookCounters JSONHint Verdict
    Message UnreadableMessage Page FetchRequest Push Cursor Record RecordState DeadLetter SavedCursor
    Feed Listener Channel Store Session TransactionalSession
    PollResult Status ListenerStatus Counters Mode FailingMessage Hooks Fate DeadLetters Retried Resync Resynced
    Gap PushToPollError FeedError FeedRefused ChainRestart CursorExpired FeedGone Throttled ProcessError
    MessageVerdict RetryMessage DeadLetterMessage SkipMessage StopConsumer UndecodableMessage ContentChanged
    ListenerError SubscriptionGone StoreError StoreBusy StoreMismatch OwnershipLost
    """.split()  # noqa: SIM905  # read by people
)


def test_the_package_exports_exactly_the_listed_public_names():
    assert push_to_poll_client.__all__ == sorted(PUBLIC)


@pytest.mark.parametrize("module", [push_to_poll_client, durable_streams, feeds, listeners, stores, testing])
def test_every_public_name_exists_and_every_public_class_has_a_docstring(module):
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        assert thing is not None
        assert not isinstance(thing, type) or thing.__doc__, f"{name} has no docstring"


def test_an_unknown_name_in_the_lazy_testing_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'push_to_poll_client\.testing' has no attribute 'Nothing'"):
        testing.Nothing  # noqa: B018  # it is asked for


def test_the_project_has_exactly_the_expected_dependencies():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {"anyio", "httpcore", "httpx", "msgspec", "tenacity", "websockets"}
