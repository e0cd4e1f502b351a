"""The figures of `docs/security.md` match the code."""

import inspect
from pathlib import Path

import pytest

from push_to_poll_client import Consumer, WebhookListener, _secrets
from push_to_poll_client.cli import _webhook
from push_to_poll_client.durable_streams import _signature
from push_to_poll_client.listeners import handshakes, webhook
from push_to_poll_client.listeners._webhook import limits, routing
from push_to_poll_client.listeners.verifiers import HMACSignature

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "security.md").read_text().split())


def default(function, name):
    return inspect.signature(function).parameters[name].default


@pytest.mark.parametrize(
    "text",
    [
        f"`degraded_interval` ({default(Consumer, 'degraded_interval'):.0f} s)",
        f"larger than `max_body` ({default(WebhookListener, 'max_body') / 2**20:.0f} MiB)",
        f"exceeds {webhook.MAX_BODIES} at a time",
        f"`rate` ({default(WebhookListener, 'rate'):.0f} a second, {default(WebhookListener, 'burst')} at once)",
        f"is not complete within {default(WebhookListener, 'body_timeout'):.0f} s",
        f"an answer of at most {handshakes.MAX_ECHO / 1024:.0f} KiB",
        f"until {routing.FLOOD_QUIET_TIME:.0f} to {2 * routing.FLOOD_QUIET_TIME:.0f} s after the last rejection",
        f"recognised for {default(HMACSignature, 'tolerance') / 60:.0f} minutes",
        f"within the last {limits.MAX_REPLAYS:,} digests",
        f"more than {limits.MAX_REPLAYS // 2:,} names",
        f"the last {_secrets.MAX_RECENT // 2} tokens",
        f"values of fewer than {_secrets.MIN_SECRET} characters",
        f"values of {_secrets.MIN_UNNAMED_SECRET} or more characters",
        f"half of the file descriptors, at most {_webhook.MAX_CONNECTIONS:,}",
    ],
)
def test_a_figure_of_the_page_matches_the_code(text):
    assert text in PAGE


def test_unknown_keys_are_requested_at_most_once_a_minute():
    assert _signature.MIN_REFRESH_INTERVAL == 60
    assert "Unknown keys in requests cause at most one fetch a minute." in PAGE
