"""A store that refuses calls for a while."""

from push_to_poll_client import MemoryStore, StoreUnavailable

__all__ = ["RefusingStore"]


class RefusingStore(MemoryStore):
    """A `MemoryStore` whose calls raise an error for the names in `refuses`.

    Attributes:
        refuses: The names of the calls that fail: "claim", or a method of a session.
        error: The error that they raise.
        refused: The names of the calls that failed, in order.
        commits: The keys of the records of each commit that succeeded.
    """

    def __init__(self, *refuses, error=None):
        super().__init__()
        self.refuses = {*refuses}
        self.error = error or StoreUnavailable("disk full")
        self.refused = []
        self.commits = []

    def check(self, call):
        if call in self.refuses:
            self.refused.append(call)
            raise self.error

    async def claim(self, name, *, feed):
        self.check("claim")
        session = await super().claim(name, feed=feed)
        for call in ("unseen", "fingerprints", "commit", "reset", "dead_letters"):
            setattr(session, call, self._checked(call, getattr(session, call)))
        return session

    def _checked(self, call, method):
        async def checked(*args, **arguments):
            self.check(call)
            result = await method(*args, **arguments)
            if call == "commit":
                self.commits.append([record.key for record in arguments["records"]])
            return result

        return checked
