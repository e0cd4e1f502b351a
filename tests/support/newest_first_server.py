"""Documents that show what is newest first, in memory, and whoever walks through them."""

import anyio

from push_to_poll_client import FeedRefused, FetchRequest, Message
from push_to_poll_client._http.caching import Validators
from push_to_poll_client.feeds._newest_first import NewestFirstReader
from push_to_poll_client.feeds._newest_first_walk import Document

WHERE = "https://h.example/feed"


class Documents:
    """A feed of documents. `asked` has the address of each that was asked for.

    Args:
        count: Entries that are there at first, named by numbers, the oldest first.
        size: Entries of a document.
        says: What else each document says, as `Document` has it.
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
        """The newest first."""
        return [*self.pinned, *(name for name in self.entries if name not in self.pinned)]

    @property
    def there(self):
        """All that is to be seen."""
        return set(self.shown)

    async def look(self, address, request, known):
        assert address is None or known.validators is None
        self.asked.append(address)
        await anyio.sleep(self.latency)
        if self.errors.get(address):
            raise self.errors[address].pop(0)
        return self.answer(address, known)

    def answer(self, address, known):
        """As a server that knows each document by what the feed is known by."""
        validators = Validators(etag=f'"{hash((*self.shown, self.document(None).older))}"')
        if validators == known.validators:
            return Document(unchanged=True, **self.says | {"closed": False})
        return self.document(address)._replace(validators=validators, **self.says)

    def drop(self, count):
        """So many of the oldest are kept no longer, or no longer than they are pinned."""
        dropped = self.entries[-count:]
        del self.entries[-count:]
        return [name for name in dropped if name not in self.pinned]

    def leaf(self, names, older, **more):
        return Document(tuple(Named(name) for name in names), older, **more)


class Named(Message):
    """Two of one name are equal."""

    def __eq__(self, other):
        return self.id == other.id

    def __hash__(self):
        return hash(self.id)


class Numbered(Documents):
    """Pages by number: what is published shifts them, what is deleted shifts them back."""

    def document(self, address):
        number, shown = int(address or 1), self.shown
        names = shown[(number - 1) * self.size : number * self.size]
        return self.leaf(names, str(number + 1) if len(shown) > number * self.size else None)


class Following(Documents):
    """Pages by the entry that they follow, as Stripe has them: nothing shifts."""

    def document(self, address):
        shown = self.shown
        if address is not None and address not in shown:
            raise FeedRefused(f"no such entry: {address}")
        start = 0 if address is None else shown.index(address) + 1
        names = shown[start : start + self.size]
        return self.leaf(names, names[-1] if len(shown) > start + self.size else None)


class Archived(Documents):
    """A document of what is newest, and archives of `size` that lead from one to the next (RFC 5005 §4)."""

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
        """The oldest archives."""
        there = [number for number, names in enumerate(self.archives) if names is not None][: count // self.size]
        dropped = [name for number in there for name in self.archives[number]]
        for number in there:
            self.archives[number] = None
        return dropped


class Reader:
    """Reads a feed as a consumer does: saves a cursor when all before it is settled."""

    def __init__(self, walk, cursor=None):
        self.walk, self.saved = walk, cursor
        self.begin()
        self.settled, self.gaps, self.pages = [], [], []

    def begin(self):
        """Another poll, at the saved cursor."""
        self.position, self.passed = self.saved, set()

    async def step(self, **options):
        """One page; whether there are more."""
        page = await self.walk.fetch(FetchRequest(self.position, **options))
        self.pages.append(page)
        self.settled += [message.id for message in page.messages]
        self.gaps += [page.gap] if page.gap else []
        self.saved = page.cursor or self.saved
        assert page.next_page not in self.passed  # or the poll would take it for a circle
        self.passed.add(page.next_page)
        if page.next_page is None:
            self.begin()
            return False
        self.position = page.next_page
        return True

    async def poll(self, **options):
        """To the end; what it brought."""
        before = len(self.settled)
        self.begin()
        for _ in range(1000):
            if not await self.step(**options):
                return self.settled[before:]
            options = {}
        raise AssertionError("it has no end")


def reader(documents, cursor=None, **options):
    return Reader(NewestFirstReader(documents.look, WHERE, **options), cursor)
