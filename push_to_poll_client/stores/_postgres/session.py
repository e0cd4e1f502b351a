"""The session of a claimed name: the owner's side of a lease, and the calls of the consumer."""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar
from weakref import finalize

import anyio

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Push
from push_to_poll_client._validation import describe
from push_to_poll_client.stores._names import (
    ClaimedSession,
)
from push_to_poll_client.stores._postgres.claims import Claimant
from push_to_poll_client.stores._postgres.housekeeping import Housekeeping, free_name
from push_to_poll_client.stores._postgres.lease import Lease
from push_to_poll_client.stores._postgres.notices import digest_of
from push_to_poll_client.stores._postgres.progress import ClaimedName

_logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_RELEASE_TIMEOUT = 3.0
"""Seconds. A consumer that stops does not wait longer for a server that does not answer."""

_T = TypeVar("_T")


class PostgresSession(ClaimedSession):
    """A claimed name of a `PostgresStore`."""

    _progress: ClaimedName

    def __init__(self, claimant: Claimant, claimed: ClaimedName, housekeeping: Housekeeping) -> None:
        super().__init__(claimed)
        self.name: str = claimed.name
        self._claimant = claimant
        self._database = claimant.database
        self._housekeeping = housekeeping
        digest, owner = digest_of(claimed.name), claimed.row.owner
        self._lease = Lease(claimed.row.id, digest, owner, ends=claimed.ends, clock=claimant.clock)
        claimed.lease = self._lease
        self._process = os.getpid()
        finalize(self, _drop, self._lease, housekeeping).atexit = False  # first, because `add` can fail
        housekeeping.add(self._lease)

    @property
    def lost(self) -> bool:
        """True if the session has ended; see `LeasedSession.lost`."""
        return self._lease.lost

    @property
    def wanted(self) -> bool:
        """True if the owner is asked to hand over."""
        return self._lease.wanted

    def subscribe(self, *, changed: Callable[[], None], wake: Callable[[Push | None], None]) -> None:
        """Set the functions that the store calls; see `LeasedSession.subscribe`."""
        self._lease.changed, self._lease.wake = changed, wake
        if self.lost or self.wanted:  # since before this call
            changed()

    def time(self) -> float:
        """Return the server's time of day, in seconds since the epoch."""
        return self._progress.time()

    async def again(self) -> "PostgresSession":
        """Claim the name again after a commit in doubt; see `LeasedSession.again`."""
        self._check_process()
        if self._lease.is_released:
            self._progress.check()
        self._lease.is_over = True
        if self._claimant.clock() >= self._lease.ends:
            raise self._progress.ownership_lost("has been free since the lease of this session ended")
        claimed = await self._database.run(partial(self._claimant.claim_again, self._progress))
        self._forget()
        return type(self)(self._claimant, claimed, self._housekeeping)

    async def release(self) -> None:
        """Release the name. Never raises; a second call does nothing."""
        if self._lease.is_released or self._process != os.getpid():
            return
        self._forget()
        with anyio.CancelScope(shield=True):
            await self._database.run(self._free)

    def _forget(self) -> None:
        self._lease.is_released = self._lease.is_over = True
        self._lease.changed = self._lease.wake = None
        self._housekeeping.remove(self._lease)

    def _free(self) -> None:
        try:
            with self._database.connection(timeout=_RELEASE_TIMEOUT) as connection:
                free_name(self._database, connection, self._lease)
        except StoreError as error:
            _logger.info("the name was not released, its lease will end: %s", describe(error))

    async def _run(self, work: Callable[[], _T]) -> _T:
        self._check()
        return await self._database.run(work)

    def _check(self) -> None:
        self._check_process()
        self._progress.check()

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise self._progress.ownership_lost("belongs to the process that this one was forked from")


def _drop(lease: Lease, housekeeping: Housekeeping) -> None:
    # Python calls this from any thread, in the middle of anything, so it takes no lock.
    lease.is_over = lease.is_dropped = True
    housekeeping.ring()
