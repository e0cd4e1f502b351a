"""The same argument has one name, place, default and description in every listener and subscription."""

import inspect
import re

import pytest

from push_to_poll_client.durable_streams import DurableStreamsSignature, DurableStreamsWebhook, PullWakeListener
from push_to_poll_client.listeners import ConnectionListener, LongPollListener, SSEListener, WebSocketListener
from push_to_poll_client.listeners.postgres import PostgresListener
from push_to_poll_client.listeners.redis import RedisListener
from push_to_poll_client.listeners.subscriptions import WebSub

pytestmark = pytest.mark.no_cover  # it reads signatures and docstrings

CHANNELS = [
    WebSocketListener,
    SSEListener,
    LongPollListener,
    PostgresListener,
    RedisListener,
    ConnectionListener,
    PullWakeListener,
]
ALL = [*CHANNELS, WebSub, DurableStreamsWebhook, DurableStreamsSignature]

DEFAULTS = {
    "auth": {None},
    "headers": {None},
    "hint": {None},
    "classify": {None},
    "ssl_context": {None},
    "max_age": {600.0},
    "max_silence": {None, 90.0, 60.0},  # depends on how long servers of this kind are silent
    "open_timeout": {10.0},
    "max_body": {65_536, 1024 * 1024},  # one event, or a whole response
    "client": {None},
}
"""The arguments that several listeners share, in order, with their defaults."""

GONE = {"token", "tls", "max_size"}


def arguments(kind):
    return inspect.signature(kind).parameters


@pytest.mark.parametrize("kind", ALL)
def test_common_arguments_have_one_name_order_and_default(kind):
    common = [name for name in arguments(kind) if name in DEFAULTS]
    assert common == [name for name in DEFAULTS if name in common]
    in_order = [*arguments(kind)][-len(common) :] == common or kind is WebSub  # its timeout is before its client
    assert in_order, f"put the arguments that others do not have before {common[0]}"
    for name in common:
        assert arguments(kind)[name].default in DEFAULTS[name], name
    assert not GONE & arguments(kind).keys()


def described(kind):
    text = inspect.getdoc(kind)
    found = re.finditer(r"^    (\w+): (.*(?:\n        .*)*)", text[text.index("Args:") :], re.MULTILINE)
    return {match[1]: " ".join(match[2].split()) for match in found}


@pytest.mark.parametrize("name", ["ssl_context", "max_age"])
def test_a_common_argument_has_one_description(name):
    texts = {kind.__name__: described(kind)[name] for kind in ALL if name in arguments(kind)}
    assert len(texts) > 4
    assert len(set(texts.values()) - {"As for `SSEListener`."}) == 1, texts


@pytest.mark.parametrize("kind", ALL)
def test_arguments_are_described_in_their_order(kind):
    assert [name for name in described(kind) if name in arguments(kind)] == [*arguments(kind)]
