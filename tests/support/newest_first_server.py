"""Newest-first documents in memory, and a reader of them."""

import anyio

from push_to_poll_client import FeedRefused, FetchRequest, Message
from push_to_poll_client._http.caching import Validators
from push_to_poll_client.feeds._newest_first import NewestFirstReader
from push_to_poll_client.feeds._newest_first_walk import Document

WHERE = "https://h.example/feed"


class Documents:
    """A feed of documents. `asked` records the address of each request.

    Args:
        count: Number of entries at first, named by numbers, oldest first.
        size: Entries of a document.
        says: Further fields of each `Document`.
    """

    def __init__(self, count=0, *, size=3, **says):
        self.size, self.says = size, says
        self.entries = []
        self.pinned = []
        self.asked = []
        self.errors = {}
        self.published = 0
        self.latency = 0.0
        self.publish(count)

    def publish(self, count=1):
        names = [f"{number:03}" for number in range(self.published + 1, self.published + count + 1)]
        self.published += count
        self.entries[:0] = reversed(names)
        return names

    def pin(self, *names):
        self.pinned = list(names)

    @property
    def shown(self):
        """The visible entries, newest first."""
        return [*self.pinned, *(name for name in self.entries if name not in self.pinned)]

    @property
    def there(self):
        """All entries that a request can reach."""
        return set(self.shown)

    async def look(self, address, request, known):
        assert address is None or known.validators is None
        self.asked.append(address)
        await anyio.sleep(self.latency)
        if self.errors.get(address):
            raise self.errors[address].pop(0)
        return self.answer(address, known)

    def answer(self, address, known):
        """Respond with validators, or with `unchanged` if the condition holds."""
        validators = Validators(etag=f'"{hash((*self.shown, self.document(None).older))}"')
        if validators == known.validators:
            return Document(unchanged=True, **self.says | {"closed": False})
        return self.document(address)._replace(validators=validators, **self.says)

    def drop(self, count):
        """Drop so many of the oldest entries, except pinned ones. Return the names of the dropped ones."""
        dropped = self.entries[-count:]
        del self.entries[-count:]
        return [name for name in dropped if name not in self.pinned]

    def leaf(self, names, older, **more):
        return Document(tuple(Named(name) for name in names), older, **more)


class Named(Message):
    """Equality compares the names only."""

    def __eq__(self, other):
        return self.id == other.id

    def __hash__(self):
        return hash(self.id)


class Numbered(Documents):
    """Pages by number: a new entry shifts them, a deletion shifts them back."""

    def document(self, address):
        number, shown = int(address or 1), self.shown
        names = shown[(number - 1) * self.size : number * self.size]
        return self.leaf(names, str(number + 1) if len(shown) > number * self.size else None)


class Following(Documents):
    """Pages after a given entry, as at Stripe: nothing shifts."""

    def document(self, address):
        shown = self.shown
        if address is not None and address not in shown:
            raise FeedRefused(f"no such entry: {address}")
        start = 0 if address is None else shown.index(address) + 1
        names = shown[start : start + self.size]
        return self.leaf(names, names[-1] if len(shown) > start + self.size else None)


class Archived(Documents):
    """A document of the newest entries, and archives of `size` that link to each other (RFC 5005 §4)."""

    def __init__(self, count=0, **options):
        self.archives = []
        super().__init__(count, **options)

    def publish(self, count=1):
        names = super().publish(count)
        while len(self.entries) > self.size:
            self.archives.append(self.entries[-self.size :])
            del self.entries[-self.size :]
        return names

    @property
    def there(self):
        return super().there.union(*filter(None, self.archives))

    def document(self, address):
        number = len(self.archives) if address is None else int(address.removeprefix("archive "))
        if address is not None and self.archives[number] is None:
            return Document(missing=f"{address} is not there any more")
        names = self.shown if address is None else self.archives[number]
        there = number > 0 and self.archives[number - 1] is not None
        return self.leaf(names, f"archive {number - 1}" if there else None, stable=there)

    def drop(self, count):
        """Drop the oldest archives."""
        there = [number for number, names in enumerate(self.archives) if names is not None][: count // self.size]
        dropped = [name for number in there for name in self.archives[number]]
        for number in there:
            self.archives[number] = None
        return dropped


class Reader:
    """Read a feed like a consumer: save a cursor once all messages before it are settled."""

    def __init__(self, walk, cursor=None):
        self.walk, self.saved = walk, cursor
        self.begin()
        self.settled, self.gaps, self.pages = [], [], []

    def begin(self):
        """Start another poll at the saved cursor."""
        self.position, self.passed = self.saved, set()

    async def step(self, **options):
        """Read one page. Return True if there are more."""
        page = await self.walk.fetch(FetchRequest(self.position, **options))
        self.pages.append(page)
        self.settled += [message.id for message in page.messages]
        self.gaps += [page.gap] if page.gap else []
        self.saved = page.cursor or self.saved
        assert page.next_page not in self.passed  # else the poll would report a circle
        self.passed.add(page.next_page)
        if page.next_page is None:
            self.begin()
            return False
        self.position = page.next_page
        return True

    async def poll(self, **options):
        """Poll to the end. Return the messages."""
        before = len(self.settled)
        self.begin()
        for _ in range(1000):
            if not await self.step(**options):
                return self.settled[before:]
            options = {}
        raise AssertionError("it has no end")


def reader(documents, cursor=None, **options):
    return Reader(NewestFirstReader(documents.look, WHERE, **options), cursor)
