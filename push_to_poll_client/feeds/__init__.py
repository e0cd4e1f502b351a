"""What to ask: one file for each kind of feed."""

from push_to_poll_client.feeds.http_feed import CloudEvent, HTTPFeed

__all__ = ["CloudEvent", "HTTPFeed"]
