"""Read an Atom feed: fetch its documents newest first, return its entries oldest first.

RFC 4287 defines entries, RFC 5005 links to older documents, RFC 6721 deleted entries. `NewestFirstReader` walks
back from the newest document to the entries that were seen before; the modules of `_atom` read the documents.
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
    """Read an Atom feed (RFC 4287), with or without pages or archives (RFC 5005).

    Each version of an entry is one `AtomEntry` message. A version is identified by the entry's id and the time of
    its `updated`. A deletion is one more message, with `deleted` true (RFC 6721). An entry that cannot be read
    becomes an `UnreadableMessage`; the other entries are not affected. A document that is not well-formed XML
    fails the poll.

    The cursor names the entries of the newest document. A poll walks back from there, along `prev-archive` or
    `next`, to an entry that was seen before. It returns the new entries in the order of their `updated`. At most
    about 10,000 entries are held in memory; in a longer backlog the newer documents are fetched twice.

    - A plain feed has only its newest entries. If none of the seen entries is left, some may have been missed,
      and the page reports a gap.
    - A paged feed (RFC 5005 §3) may shift during a walk. The walk ends at the first page with a seen entry; an
      entry that appears late below that page is not found.
    - An archived feed (§4) is walked back to an archive that was already read. An archive that is gone (410), or
      not found (404) for three minutes, is reported as a gap.
    - A complete feed (§2) has all entries. An entry that disappears is reported as deleted, and as a new message
      if it comes back. This works up to about 1,000 entries, which is what a cursor can name; in a larger feed,
      missing entries are not reported.

    Redirects, credentials and clients work as in `HTTPFeed`. A link to another origin is an error, like a
    redirect.

    Args:
        url: The URL of the newest document. A user and password in the URL are sent as Basic credentials and are
            never shown.
        auth: Credentials: a token (sent as Bearer), a pair of user and password (Basic), an `httpx.Auth`, or an
            async function that returns a token or `None`. The function is called at first use, and again when the
            server answers 401. `None` sends no credentials; with `client=`, the client sends its own.
        headers: Sent with every request. They replace the feed's own headers of the same name.
        timeout: Seconds for one whole response, from connecting to the last byte. Long polling adds its wait.
        max_body: Largest response in bytes, as sent and after decompression. A response may have one message per
            160 bytes of this limit: 104,857 by default.
        client: An `httpx.AsyncClient`, or a compatible object, that sends the requests. Its timeouts apply; long
            polling adds its wait. The feed does not close it. `None` means that the feed opens its own client.
        trusted_origins: Other origins that links and redirects may lead to, for example "https://cdn.example".
            Requests to them carry no credentials, no `headers`, and nothing that a client adds by itself.
        identity: Name of the feed in the store; the consumer's saved state belongs to it. `None` derives it from
            the URL, without secrets and page size. Set it if the URL may change, or if feeds share one URL.

    Attributes:
        identity: As given, or derived from the URL.
        former_identity: Identities that earlier versions derived from the URL, newest first.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that cannot be used.
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
        """Fetch the next document on the way back from the newest one to the entries already seen.

        Raises:
            CursorExpired: The cursor does not belong to this feed.
            FeedRefused: The server refuses this client, or the URL is an archive document.
            FeedGone: The feed no longer exists (410).
            FeedError: The request failed, the server cannot answer now, or the response is not an Atom document.
        """
        return await self._http_client.mask_secrets(self._reader.fetch(request))

    async def latest(self) -> Cursor | None:
        """Return a cursor at the end of the feed: only newer entries follow it.

        Raises:
            FeedError: As for `fetch`.
        """
        return await self._http_client.mask_secrets(self._reader.latest())

    def restore(self, letter: DeadLetter, /) -> AtomEntry | UnreadableMessage:
        """Return the message of a dead letter; an `UnreadableMessage` if it still cannot be read."""
        return restore_entry(letter)

    async def aclose(self) -> None:
        """Close connections. A later `fetch` opens them again, also in another event loop."""
        self._reader.forget()
        await super().aclose()

    async def _fetch_document(self, address: str | None, request: FetchRequest, known: SeenEntries) -> Document:
        headers = {"accept": _ACCEPT, **cache_bypass_headers(bypass_cache=request.bypass_cache)}
        url = self._http_client.build_url({}) if address is None else address
        response = await self._http_client.send_request(url, headers=headers, known=known.validators)
        if address is not None and self._missing_documents.is_gone(address, response):
            missing = (
                f"a document that {response.where} links to no longer exists (status {response.status}); "
                "its entries and older ones are missed"
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
