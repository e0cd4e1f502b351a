"""Every feed of this library, each with a server in memory, so that a test can cover all feeds."""

import json
from base64 import b64encode
from functools import partial

import httpx

from push_to_poll_client import AtomFeed, HTTPFeed
from push_to_poll_client.durable_streams import DurableStreamFeed
from tests.feeds.test_paged_vendors import inception
from tests.support.declared import DECLARED, feed_of
from tests.support.durable_streams_memory import MemoryStream
from tests.vendors.atom import FORMS, Atom
from tests.vendors.couchdb import CouchDB
from tests.vendors.matrix import Matrix
from tests.vendors.okta import Okta
from tests.vendors.plaid import Plaid
from tests.vendors.telegram import Telegram
from tests.vendors.vendor import SECRET, Vendor, name, read_token

SECRETS = (SECRET, *(b64encode(b"x" * n + SECRET.encode()).decode()[4:-4] for n in range(3)))
"""Texts that reveal the secret: plain, and in the Base64 of Basic authentication."""

SUBJECTS = {}
"""The subjects by name."""


class Subject:
    """A feed and its server.

    Attributes:
        server: Has `origin`, `headers`, `entries`, `publish` and `handle`.
        start: Cursor at which a consumer starts.
        repeats: True if the names of some messages depend on the cursor that they were read from. The same entry
            read from another cursor is then another message.
        in_order: True if messages come in the order of publication.
        posts: True if the feed sends POST requests.
    """

    start = "inception"
    repeats = False
    in_order = True
    posts = False

    def make(self, client, **options):
        raise NotImplementedError

    def __init__(self, server):
        self.server = server
        self._places = {}

    def place(self, message):
        """Return the place of the entry, from 1."""
        for entry in self.server.entries[len(self._places) :]:
            self._places[canonical(self.what(entry))] = len(self._places) + 1
        return self._places[canonical(self.entry_of(message))]

    def what(self, entry):
        """Return the server's form of an entry."""
        return entry

    def entry_of(self, message):
        """Return the entry as a message shows it."""
        return message.data

    def rest(self, cursor):
        """Return the entries after a cursor, where requests cannot show them; None where they can."""

    @property
    def headers(self):
        return self.server.headers | {"x-key": SECRET}


def canonical(entry):
    return json.dumps(entry, sort_keys=True)


class Declared(Subject):
    """A vendor's feed."""

    def __init__(self, kind, count):
        super().__init__(kind(count))
        self.start = inception(self.server) or "inception"
        self.repeats = kind.__name__ in {"Dropbox", "Drive", "Graph", "Plaid"}
        self.posts = kind.__name__ in {"Dropbox", "HubSpot", "Plaid"}
        self.in_order = kind is not Matrix  # one room after another
        if kind is Okta:
            self.server.left = 100_000

    def make(self, client, **options):
        return feed_of(self.server, client=client, headers=self.headers, **options)

    def entry_of(self, message):
        return {
            key: value for key, value in message.data.items() if key != "seq" or type(self.server) is not CouchDB
        }

    def rest(self, cursor):
        if type(self.server) is Matrix:  # from an older cursor it shows only the newest events
            return range(read_token(cursor)["at"] + 1, len(self.server.entries) + 1)
        if type(self.server) is not Telegram:
            return None
        return [
            number for number, update in enumerate(self.server.entries, 1) if update["update_id"] >= int(cursor)
        ]

    def what(self, entry):
        return entry[1] if type(self.server) in {Matrix, Plaid} else entry


class Batches(Vendor):
    """HTTP Feeds (http-feeds.org), with long polling and an `ETag`."""

    origin = "https://shop.example"
    path = "/orders"

    def entry(self, number):
        event = {"specversion": "1.0", "id": name(number), "source": "/orders", "type": "order", "subject": None}
        return event | {"data": {"number": number}}

    def hold(self, request):
        return float(request.url.params.get("timeout", 0)) / 1000

    def has_news(self, request):
        return bool(self._after(request))

    def answer(self, request):
        shown = self._after(request)[: self.page_size]
        etag = f'"{len(shown)}-{shown[-1]["id"] if shown else ""}"'
        if request.headers.get("if-none-match") == etag:
            return httpx.Response(304, headers={"etag": etag})
        kind = "application/cloudevents-batch+json"
        return httpx.Response(200, json=shown, headers={"content-type": kind, "etag": etag})

    def _after(self, request):
        last = request.url.params.get("lastEventId")
        places = [place for place, event in enumerate(self.entries, 1) if event["id"] == last]
        return self.entries[places[0] if places else 0 :]


class OfHTTPFeed(Subject):
    def __init__(self, count):
        super().__init__(Batches(count))

    def make(self, client, **options):
        given = {"max_wait": 20.0, "client": client, "headers": self.headers} | options
        return HTTPFeed(self.server.url, **given)

    def what(self, entry):
        return entry["id"]

    def entry_of(self, message):
        return message.id


class Stream(MemoryStream):
    """A stream of numbers."""

    origin = "https://streams.example"
    headers = {"authorization": f"Bearer {SECRET}"}  # noqa: RUF012

    def __init__(self, count):
        super().__init__(token=SECRET)
        self.publish(count)

    @property
    def entries(self):
        return [json.loads(piece) for piece in self.pieces]

    def publish(self, count=1):
        before = len(self.pieces)
        self.append(*(b"%d" % number for number in range(before + 1, before + count + 1)))

    async def handle(self, request):
        return await self._answer(request)


class OfAStream(Subject):
    def __init__(self, count):
        super().__init__(Stream(count))

    def make(self, client, **options):
        given = {"client": client, "headers": self.headers} | options
        return DurableStreamFeed(f"{self.server.origin}/orders", **given)


class OfAtom(Subject):
    def __init__(self, form, count):
        super().__init__(Atom(count, form=form))
        self.repeats = form == "complete"  # an entry that leaves the document and comes back is new

    def make(self, client, **options):
        return AtomFeed(self.server.url, client=client, headers=self.headers, **options)

    def what(self, entry):
        return entry["id"]

    def entry_of(self, message):
        return message.entry_id


SUBJECTS |= {kind.__name__: partial(Declared, kind) for kind in DECLARED}
SUBJECTS |= {"HTTPFeed": OfHTTPFeed, "DurableStreamFeed": OfAStream}
SUBJECTS |= {f"AtomFeed, {form}": partial(OfAtom, form) for form in FORMS}
