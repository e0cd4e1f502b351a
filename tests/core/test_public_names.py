"""The public names are these and no others, and each is documented."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

import push_to_poll_client
from push_to_poll_client import durable_streams, feeds, listeners, stores, testing

PUBLIC = set(
    """
    Consumer CloudEvent HTTPFeed PagedFeed Entry AtomFeed AtomEntry SQLiteStore MemoryStore
    WebSocketListener SSEListener ServerSentEvent ConnectionListener Connection LongPollListener
    WebhookListener WebhookRequest WebhookAnswer WebhookCounters JSONHint Verdict
    Message UnreadableMessage Page FetchRequest Push Cursor Record RecordState DeadLetter SavedCursor
    Feed Listener Channel Store Session TransactionalSession
    PollResult Status ListenerStatus Counters Mode FailingMessage Hooks Fate DeadLetters Retried Resync Resynced
    Gap PushToPollError FeedError FeedRefused ChainRestart CursorExpired FeedGone Throttled ProcessError
    MessageVerdict RetryMessage DeadLetterMessage SkipMessage StopConsumer UndecodableMessage ContentChanged
    ListenerError SubscriptionGone StoreError StoreUnavailable StoreBusy StoreMismatch OwnershipLost __version__
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


def test_the_version_is_that_of_the_installed_distribution():
    assert push_to_poll_client.__version__ == importlib.metadata.version("push-to-poll-client")


def test_the_project_has_exactly_the_expected_dependencies():
    project = tomllib.loads((Path(push_to_poll_client.__file__).parents[1] / "pyproject.toml").read_text())[
        "project"
    ]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {"anyio", "httpcore", "httpx", "msgspec", "tenacity", "typing-extensions", "websockets"}
