"""The public names are exactly the listed ones, and each is documented."""

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import push_to_poll_client
from push_to_poll_client import durable_streams, feeds, listeners, stores, testing
from tests.core.public_names import LIST, public_names
from tests.support.forms import GUARD

PACKAGES = [push_to_poll_client, durable_streams, feeds, listeners, stores, testing]

PUBLIC = set(
    """
    Consumer CloudEvent HTTPFeed PagedFeed Entry AtomFeed AtomEntry SQLiteStore MemoryStore
    WebSocketListener SSEListener ServerSentEvent ConnectionListener Connection LongPollListener
    WebhookListener WebhookRequest WebhookResponse WebhookCounters JSONHint ReconnectAction
    Message UnreadableMessage Page FetchRequest Push Cursor Record Settlement DeadLetter SavedCursor
    Feed Listener Channel Store Session LeasedSession TransactionalSession
    PollResult Status ListenerStatus Counters Mode FailingMessage Hooks FailureAction DeadLetters RetryResult
    Resync ResyncEvent Gap PushToPollError FeedError FeedRefused PagesChanged CursorExpired FeedGone Throttled
    ProcessError HandlerDecision RetryMessage DeadLetterMessage SkipMessage StopConsumer DecodeError ContentChanged
    ListenerError SubscriptionGone StoreError StoreUnavailable CommitInDoubt StoreBusy StoreMismatch
    OwnershipLost __version__
    """.split()  # noqa: SIM905  # read by people
)


def test_the_list_of_public_names_with_their_signatures_is_up_to_date():
    """Check in a changed list that arguments keep their names, order and defaults."""
    listed = LIST.read_text().splitlines()
    assert listed == [*public_names()], "run python -m tests.core.public_names, and read what changed"


def test_the_package_exports_exactly_the_listed_public_names():
    assert push_to_poll_client.__all__ == sorted(PUBLIC)


@pytest.mark.parametrize("module", PACKAGES)
def test_every_public_name_exists_and_every_public_class_has_a_docstring(module):
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        assert thing is not None
        assert not isinstance(thing, type) or thing.__doc__, f"{name} has no docstring"


def imported_names(module, *, by_type_checkers):
    """Return the names that an `__init__` imports, each with its module."""
    statements = ast.parse(inspect.getsource(module)).body
    if by_type_checkers:
        (block,) = [node for node in statements if isinstance(node, ast.If)]
        statements = block.body
    return {
        alias.name: node.module
        for node in statements
        if isinstance(node, ast.ImportFrom) and node.module.startswith("push_to_poll_client")
        for alias in node.names
    }


@pytest.mark.parametrize("module", PACKAGES)
def test_type_checkers_see_exactly_the_names_that_are_loaded_when_they_are_used(module):
    seen = imported_names(module, by_type_checkers=True)
    at_once = imported_names(module, by_type_checkers=False)
    assert {*module.__all__} - at_once.keys() == seen.keys()
    assert {*module.__all__} <= {*dir(module)}
    for name, origin in seen.items():
        assert getattr(module, name) is getattr(importlib.import_module(origin), name)


@pytest.mark.parametrize("module", [feeds, listeners, stores])
def test_the_package_exports_each_name_of_feeds_listeners_and_stores(module):
    assert {*module.__all__} <= {*push_to_poll_client.__all__}


@pytest.mark.parametrize("module", PACKAGES)
def test_an_unknown_name_raises_the_error_for_which_python_suggests_names(module):
    with pytest.raises(AttributeError, match=rf"^module '{module.__name__}' has no attribute 'Nothing'$") as error:
        module.Nothing  # noqa: B018  # it is asked for
    assert (error.value.name, error.value.obj) == ("Nothing", module)  # Python uses them for "Did you mean"
    with pytest.raises(ImportError, match=rf"^cannot import name 'Nothing' from '{module.__name__}'"):
        exec(f"from {module.__name__} import Nothing")  # noqa: S102  # as a user writes it


def in_a_fresh_process(code):
    """Return the output of code in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=GUARD, check=False)
    assert done.stderr == ""
    return done.stdout


def test_help_and_a_star_import_find_each_name_in_a_fresh_process():
    """In a fresh process, because another test may have imported the names in this one."""
    text = in_a_fresh_process(
        "import push_to_poll_client as package, pydoc, pickle\n"
        "print(pydoc.plain(pydoc.render_doc(package)))\n"
        "from push_to_poll_client import *\n"
        "print(*sorted(set(package.__all__) & set(dir())))\n"
        "print(pickle.loads(pickle.dumps(WebSocketListener)) is package.listeners.WebSocketListener)\n"
        "print(package.feeds.paged.PagedFeed is PagedFeed)"
    )
    *helped, found, pickled, submodule = text.splitlines()
    assert PUBLIC - {"__version__"} <= {*re.findall(r"\w+", "\n".join(helped))}
    assert found.split() == sorted(PUBLIC)
    assert (pickled, submodule) == ("True", "True")


NOT_NEEDED = """
    websockets xml html urllib.robotparser
    push_to_poll_client.listeners._base push_to_poll_client.feeds.paged push_to_poll_client.feeds.atom
    push_to_poll_client.stores.memory push_to_poll_client.cli push_to_poll_client.testing
    push_to_poll_client.durable_streams._feed
"""
"""Modules that a consumer of an HTTP feed on SQLite does not import."""


def test_a_consumer_of_an_http_feed_imports_no_other_feed_no_listener_and_no_other_store():
    """Each process pays for its imports. `make bench` measures the time."""
    modules = in_a_fresh_process(
        "import sys\n"
        "sys.modules['click'] = None  # where it is installed, `import httpx` imports it, and much more\n"
        "from push_to_poll_client import Consumer, HTTPFeed, SQLiteStore\n"
        "print(*sys.modules)"
    )
    assert not {*NOT_NEEDED.split()} & {*modules.split()}


def test_few_frozen_dataclasses_are_made_when_a_consumer_is_imported():
    """Python compiles code for each: 0.6 ms in every process, 50 times as long as for a Struct."""
    made = in_a_fresh_process(
        "import gc\n"
        "from push_to_poll_client import Consumer, HTTPFeed, SQLiteStore\n"
        "kinds = [kind for kind in gc.get_objects() if isinstance(kind, type)]\n"
        "made = [kind for kind in kinds if hasattr(kind, '__dataclass_params__')]\n"
        "frozen = [kind for kind in made if kind.__dataclass_params__.frozen]\n"
        "print(*{kind.__name__ for kind in frozen if kind.__module__.startswith('push_to_poll_client')})"
    )
    assert len(made.split()) <= 16, made


def test_the_version_is_that_of_the_installed_distribution():
    assert push_to_poll_client.__version__ == importlib.metadata.version("push-to-poll-client")


def test_the_project_has_exactly_the_expected_dependencies():
    project = tomllib.loads((Path(push_to_poll_client.__file__).parents[1] / "pyproject.toml").read_text())[
        "project"
    ]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {"anyio", "httpcore", "httpx", "msgspec", "tenacity", "typing-extensions", "websockets"}
