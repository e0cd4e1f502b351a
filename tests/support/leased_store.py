"""A fake of a store that several replicas share, whose leases a test ends by hand."""

from push_to_poll_client import CommitInDoubt, MemoryStore, OwnershipLost, StoreBusy, StoreUnavailable
from push_to_poll_client.testing._virtual_time import Bell

__all__ = ["LeasedStore"]


class LeasedStore(MemoryStore):
    """A `MemoryStore` with leased sessions. Each session is the attribute `owner` while it owns a name.

    Attributes:
        owner: The session of the last claim; None after its release.
        forwarded: The pushes that replicas forwarded.
        unavailable: True to make each call fail.
    """

    def __init__(self):
        super().__init__()
        self.owner = None
        self.forwarded = []
        self.unavailable = False
        self.claims = 0
        self.bell = Bell()

    async def claim(self, name, *, feed):
        self.claims += 1
        if self.unavailable:
            raise StoreUnavailable("connection refused")
        try:
            inner = await super().claim(name, feed=feed)
        except StoreBusy as busy:
            raise StoreBusy(str(busy), owner="process 4711", seconds_left=10.0) from busy
        self.owner = LeasedFake(self, name, feed, inner)
        return self.owner

    async def freed(self, name):
        if self.owner is not None:
            await self.bell.wait()

    def forward(self, name, push):
        self.forwarded.append(push)
        if self.owner is not None:
            self.owner.wake(push)

    def end_lease(self):
        """End the owner's lease, as if its process had been suspended for longer."""
        ended, self.owner = self.owner, None
        self._owners.clear()
        ended.lost = True
        ended.changed()
        self.bell.ring()


class LeasedFake:
    """A session with a lease.

    Attributes:
        doubt: Makes the next commit raise `CommitInDoubt`: "landed" after it is written, "lost" before.
    """

    def __init__(self, store, name, feed, inner):
        self._store, self._name, self._feed, self._inner = store, name, feed, inner
        self.lost = self.wanted = False
        self.doubt = None

    def __getattr__(self, attribute):
        if self.lost:
            raise OwnershipLost("the lease has ended")
        return getattr(self._inner, attribute)

    cursor = property(lambda self: self._inner.cursor)
    history = property(lambda self: self._inner.history)
    record_count = property(lambda self: self._inner.record_count)
    dead_letter_count = property(lambda self: self._inner.dead_letter_count)
    fencing_token = property(lambda self: self._inner.fencing_token)

    def subscribe(self, *, changed, wake):
        self.changed, self.wake = changed, wake

    def time(self):
        return 1_000_000.0

    def want(self):
        self.wanted = True
        self.changed()

    async def commit(self, **arguments):
        if self.lost:
            raise OwnershipLost("the lease has ended")
        if self.doubt != "lost":
            await self._inner.commit(**arguments)
        if self.doubt is not None:
            self.lost, self.doubt = True, None
            self.changed()
            raise CommitInDoubt("the connection was lost during a commit")

    async def again(self):
        if self._store.owner is not self:
            raise OwnershipLost("another owner has claimed the name")
        await self._inner.release()
        return await self._store.claim(self._name, feed=self._feed)

    async def release(self):
        await self._inner.release()
        if self._store.owner is self:
            self._store.owner = None
            self._store.bell.ring()
