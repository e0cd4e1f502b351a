"""What to ask: one file for each kind of feed."""

from push_to_poll_client.feeds.durable_streams import DurableStreamFeed
from push_to_poll_client.feeds.http_feed import CloudEvent, HTTPFeed

__all__ = ["CloudEvent", "DurableStreamFeed", "HTTPFeed"]
