"""Durable Streams: a feed, a pull-wake listener, webhooks and their signatures.

Paragraphs are those of PROTOCOL.md in github.com/durable-streams/durable-streams. In the package, only its own
face imports this one.
"""

from push_to_poll_client.durable_streams._feed import DurableStreamFeed
from push_to_poll_client.durable_streams._pull_wake import PullWakeListener
from push_to_poll_client.durable_streams._signature import DurableStreamsSignature
from push_to_poll_client.durable_streams._subscription import DurableStreamsWebhook

__all__ = ["DurableStreamFeed", "DurableStreamsSignature", "DurableStreamsWebhook", "PullWakeListener"]
