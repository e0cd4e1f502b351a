"""Feeds: where messages are read, a module for each kind."""

from push_to_poll_client.feeds.atom import AtomEntry, AtomFeed
from push_to_poll_client.feeds.http_feed import CloudEvent, HTTPFeed
from push_to_poll_client.feeds.paged import Entry, PagedFeed

__all__ = ["AtomEntry", "AtomFeed", "CloudEvent", "Entry", "HTTPFeed", "PagedFeed"]
