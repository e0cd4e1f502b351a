"""Read a feed in Atom: fetch its documents newest first, and hand out its entries oldest first.

RFC 4287 defines entries, RFC 5005 how a document leads to older ones, RFC 6721 how an entry is deleted.
`NewestFirstReader` walks back from the newest document to the entries that were seen before; the modules of
`_atom` read the documents.
"""

from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from push_to_poll_client._http.caching import cache_bypass_headers, fresh_for
from push_to_poll_client._http.client import Client
from push_to_poll_client._http.credentials import Auth
from push_to_poll_client._types import Cursor, DeadLetter, FetchRequest, Page, UnreadableMessage
from push_to_poll_client.feeds._atom.complete_feed import MissingDocuments, document_from_response
from push_to_poll_client.feeds._atom.constructs import AtomCategory, AtomLink, AtomPerson, AtomText
from push_to_poll_client.feeds._atom.entry import AtomEntry, restore_entry, sort_key
from push_to_poll_client.feeds._base import BaseHTTPFeed
from push_to_poll_client.feeds._decoding import run_decoder
from push_to_poll_client.feeds._newest_first import NewestFirstReader
from push_to_poll_client.feeds._newest_first_cursor import SeenEntries
from push_to_poll_client.feeds._newest_first_walk import Document

__all__ = ["AtomCategory", "AtomEntry", "AtomFeed", "AtomLink", "AtomPerson", "AtomText"]

_ACCEPT = "application/atom+xml, application/xml;q=0.9, text/xml;q=0.8, */*;q=0.1"


class AtomFeed(BaseHTTPFeed):
    """Read a feed in Atom (RFC 4287), with or without pages or archives (RFC 5005).

    Its messages are `AtomEntry` objects, one for each version of an entry. A version is named by the entry's id
    and the instant of its `updated`. A deleted entry is one more message, whose `deleted` is true (RFC 6721).
    Versions come in the order of their `updated`. An entry that cannot be read becomes an `UnreadableMessage`, and
    the other entries are not affected. A document that cannot be read is a failed poll, since XML cannot be read
    past a fault.

    The cursor names the entries of the newest document. From there the feed is walked back, along `prev-archive`
    or `next`, to an entry that was seen before. New entries are handed out in the order of their `updated`. At
    most some 10,000 entries are held; of a longer backlog the newer documents are fetched twice.

    - A plain feed has its newest entries only. If none of the entries that were seen is left, some may have come
      and gone, and the page says so as its gap.
    - A paged feed (§3) may shift during a walk. It is walked to the first page with an entry that was seen; an
      entry that appears late below that page is not found.
    - An archived feed (§4) is walked back to an archive that was read. An archive that is gone (410), or is not
      found (404) for three minutes, is a gap.
    - A complete feed (§2) has all entries. An entry that it no longer has is handed out as deleted, and as a new
      message if it comes back. For this the cursor has to name all entries, for which there is room for some
      1,000; in a larger feed, missing entries are not reported.

    Redirects, credentials and clients are as for `HTTPFeed`; links to other origins are errors as redirects are.

    Args:
        url: The URL of the newest document. A user and password in it are sent as Basic credentials and shown
            nowhere.
        auth: Credentials: a token (Bearer), a pair of user and password (Basic), an `httpx.Auth`, or an async
            function that returns a token or `None`, and is called at first use and once more when the server
            answers 401. `None` sends no credentials, or with `client=` those of the client.
        headers: Sent with every request, in place of the feed's own of the same name.
        timeout: Seconds for one whole response, from connecting to the last byte. A wait comes on top.
        max_body: Bytes that a response may have, on the wire and unpacked. It may have a message for each 160 of
            them, 104,857 by default.
        client: An `httpx.AsyncClient`, or one of its shape, to send by. Its timeouts hold, a wait comes on top. It
            stays yours: it is not closed. `None` opens one when needed.
        trusted_origins: Other origins to which links and redirects may lead, as "https://cdn.example". They are
            asked without credentials, without `headers`, and without what a client sends by itself.
        identity: What the store calls the feed, to which it binds the consumer's name. `None` takes the URL,
            without secrets and page size; give one if the URL may change, or several feeds have it.

    Attributes:
        identity: As given, or made of the URL.
        former_identity: What earlier versions made of the URL, newest first, for their state files.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning; the text says which and why.
    """

    def __init__(
        self,
        url: str,
        *,
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        max_body: int = 16 * 1024 * 1024,
        client: Any = None,
        trusted_origins: Collection[str] = (),
        identity: str | None = None,
    ) -> None:
        super().__init__(
            Client(
                url,
                auth=auth,
                headers=headers,
                timeout=timeout,
                max_body=max_body,
                client=client,
                trusted_origins=trusted_origins,
                identity=identity,
            )
        )
        self._reader = NewestFirstReader(self._fetch_document, self._http_client.where, order=sort_key)
        self._missing_documents = MissingDocuments()

    async def fetch(self, request: FetchRequest, /) -> Page[AtomEntry]:
        """Fetch the next document on the way back from the newest one to what `request.cursor` has seen.

        Raises:
            CursorExpired: The cursor is none of this feed.
            FeedRefused: The server refuses this client, or the URL is that of an archive.
            FeedGone: The feed is gone for good (410).
            FeedError: It could not be asked, cannot answer now, or what it sent is no document of Atom.
        """
        return await self._http_client.mask_secrets(self._reader.fetch(request))

    async def latest(self) -> Cursor | None:
        """The cursor from which only what is new follows.

        Raises:
            FeedError: As for `fetch`.
        """
        return await self._http_client.mask_secrets(self._reader.latest())

    def restore(self, letter: DeadLetter, /) -> AtomEntry | UnreadableMessage:
        """The message of a dead letter: an `AtomEntry`, or an `UnreadableMessage` if it still is one."""
        return restore_entry(letter)

    async def aclose(self) -> None:
        """Give back connections; a later `fetch` opens them again, in another event loop too."""
        self._reader.forget()
        await super().aclose()

    async def _fetch_document(self, address: str | None, request: FetchRequest, known: SeenEntries) -> Document:
        headers = {"accept": _ACCEPT, **cache_bypass_headers(bypass_cache=request.bypass_cache)}
        url = self._http_client.build_url({}) if address is None else address
        response = await self._http_client.send_request(url, headers=headers, known=known.validators)
        if address is not None and self._missing_documents.is_gone(address, response):
            missing = (
                f"a document that {response.where} led to is not there any more ({response.status}), "
                "nor is what came before"
            )
            return Document(missing=missing, poll_interval=response.retry_after)
        if self._http_client.check_status(response).status == HTTPStatus.NOT_MODIFIED:
            return Document(
                unchanged=True, poll_interval=response.retry_after, fresh_for=fresh_for(response.headers)
            )
        document = await run_decoder(
            len(response.body),
            document_from_response,
            response,
            known.note,
            newest=address is None,
            max_entries=self._max_messages,
        )
        self._http_client.remember_redirects(response)
        return document
