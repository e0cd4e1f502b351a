"""Durable Streams: a feed, a pull-wake listener, webhooks and their signatures.

§ numbers refer to PROTOCOL.md in github.com/durable-streams/durable-streams. No other module of the package
imports this one.
"""

from typing import TYPE_CHECKING

from push_to_poll_client._lazy_exports import lazy_exports

if TYPE_CHECKING:
    from push_to_poll_client.durable_streams._feed import DurableStreamFeed as DurableStreamFeed
    from push_to_poll_client.durable_streams._pull_wake import PullWakeListener as PullWakeListener
    from push_to_poll_client.durable_streams._signature import DurableStreamsSignature as DurableStreamsSignature
    from push_to_poll_client.durable_streams._subscription import DurableStreamsWebhook as DurableStreamsWebhook
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "_feed": ["DurableStreamFeed"],
            "_pull_wake": ["PullWakeListener"],
            "_signature": ["DurableStreamsSignature"],
            "_subscription": ["DurableStreamsWebhook"],
        },
    )
