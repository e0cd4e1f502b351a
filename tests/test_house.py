"""The shape of the house: imports point one way, the public names are pinned."""

import ast
import tomllib
from pathlib import Path

import pytest

import push_to_poll_client
from push_to_poll_client import feeds, listeners, stores, testing

PACKAGE = Path(push_to_poll_client.__file__).parent

NOUNS = {"_types", "_exceptions", "_arguments", "_text", "_http", "_http_client", "_refusal", "_event_loop"}
"""What everybody may speak of."""

MAY_IMPORT = {
    "_exceptions": set(),
    "_types": {"_exceptions"},
    "_http": {"_types"},
    "_http_client": {"_http", "_direct_client"},
    "_direct_client": set(),
    "_refusal": {"_exceptions", "_http"},
    "_arguments": set(),
    "_text": set(),
    "_event_loop": set(),
    "_schedule": NOUNS,
    "_status": NOUNS | {"_schedule"},
    "_settings": NOUNS | {"_schedule"},
    "_inbox": NOUNS,
    "_progress": NOUNS | {"_status"},
    "_processor": NOUNS | {"_status", "_progress"},
    "_handler": NOUNS | {"_processor"},
    "_channel": NOUNS | {"_status"},
    "_fetches": NOUNS | {"_schedule"},
    "_poller": NOUNS | {"_schedule", "_processor", "_progress", "_status", "_fetches"},
    "_polls": NOUNS | {"_schedule", "_processor", "_status", "_poller"},
    "_run": NOUNS | {"_polls", "_channel", "_status", "_processor"},
    "_consumer": NOUNS
    | {
        "_schedule",
        "_progress",
        "_processor",
        "_status",
        "_settings",
        "_inbox",
        "_handler",
        "_channel",
        "_poller",
        "_polls",
        "_run",
    },
    "feeds": NOUNS | {"feeds"},
    "listeners": NOUNS | {"listeners"},
    "stores": NOUNS | {"stores"},
    "__init__": NOUNS | {"_consumer", "_schedule", "_status", "feeds", "listeners", "stores"},
}
"""Rooms not named here, `cli` and `testing`, may import anything, and nothing may import them."""


def rooms():
    for path in sorted(PACKAGE.rglob("*.py")):
        inner = path.relative_to(PACKAGE).parts
        yield inner[0].removesuffix(".py"), path


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


@pytest.mark.parametrize(("room", "path"), list(rooms()), ids=lambda value: getattr(value, "name", value))
def test_imports_point_one_way(room, path):
    allowed = MAY_IMPORT.get(room)
    for other in imported_rooms(path):
        assert allowed is None or other in allowed, f"{path.name} ({room}) must not import {other}"


def test_every_room_has_its_rule():
    unruled = {room for room, _ in rooms()} - MAY_IMPORT.keys()
    assert unruled == {"cli", "testing"}


PUBLIC = set(
    """
    Consumer HTTPFeed CloudEvent SQLiteStore MemoryStore WebSocketListener SSEListener ServerSentEvent Verdict
    Message UnreadableMessage Page FetchRequest Push Cursor Record RecordState
    Feed Listener Channel Store Session
    PollResult Status ListenerStatus Counters Mode
    PushToPollError FeedError FeedRefused ChainRestart CursorExpired FeedGone Throttled MessageFailed
    UndecodableMessage ListenerError StoreError StoreBusy StoreMismatch OwnershipLost
    """.split()  # noqa: SIM905  # read by people
)


def test_the_public_names_are_these_and_no_others():
    assert push_to_poll_client.__all__ == sorted(PUBLIC)


@pytest.mark.parametrize("module", [push_to_poll_client, feeds, listeners, stores, testing])
def test_every_public_name_is_there_and_documented(module):
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        assert thing is not None
        assert not isinstance(thing, type) or thing.__doc__, f"{name} has no docstring"


def test_every_dependency_beyond_the_design_is_explained():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {"anyio", "httpcore", "httpx", "msgspec", "tenacity", "websockets"}
