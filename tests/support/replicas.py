"""Replicas of a consumer on a store that they share."""

import anyio

from push_to_poll_client import Mode
from tests.support.consumers import Log

NAME = "orders"


class Replica(Log):
    """A replica with its store object."""

    def __init__(self, feed, store, **settings):
        super().__init__(feed, store=store, name=NAME, **settings)
        self.store = store


async def stands_by(replica):
    """Return when the replica stands by."""
    with anyio.fail_after(1_000):
        while replica.status().mode is not Mode.STANDBY:  # noqa: ASYNC110  # no event tells it
            await anyio.sleep(0.05)


async def owns(replica):
    """Return when the replica owns the name."""
    with anyio.fail_after(1_000):
        while not replica.status().is_owner:  # noqa: ASYNC110  # no event tells it
            await anyio.sleep(0.05)


async def owner_and_standby(feed, shared, running, **settings):
    owner = Replica(feed, shared.replica("first"), **settings)
    running(owner)
    await owns(owner)
    standby = Replica(feed, shared.replica("second"), **settings)
    running(standby)
    await stands_by(standby)
    return owner, standby
