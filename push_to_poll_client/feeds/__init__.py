"""Feeds to read messages from, one module per kind."""

from typing import TYPE_CHECKING

from push_to_poll_client._lazy_exports import lazy_exports

if TYPE_CHECKING:
    from push_to_poll_client.feeds.atom import AtomEntry as AtomEntry
    from push_to_poll_client.feeds.atom import AtomFeed as AtomFeed
    from push_to_poll_client.feeds.http_feed import CloudEvent as CloudEvent
    from push_to_poll_client.feeds.http_feed import HTTPFeed as HTTPFeed
    from push_to_poll_client.feeds.paged import Entry as Entry
    from push_to_poll_client.feeds.paged import PagedFeed as PagedFeed
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "atom": ["AtomEntry", "AtomFeed"],
            "http_feed": ["CloudEvent", "HTTPFeed"],
            "paged": ["Entry", "PagedFeed"],
        },
    )
