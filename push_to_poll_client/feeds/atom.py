"""A feed in Atom: its documents from the newest back to what was seen, its entries oldest first.

RFC 4287 says what an entry is, RFC 5005 how documents lead to older ones, RFC 6721 how an entry is deleted. Walking
is `_walk_back.py`'s, reading is `_atom/`'s.
"""

import functools
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from anyio import to_thread

from push_to_poll_client._exceptions import FeedError, FeedRefused
from push_to_poll_client._types import Cursor, DeadLetter, FetchRequest, Message, Page
from push_to_poll_client.feeds._atom.complete import compared, noted, recalled
from push_to_poll_client.feeds._atom.constructs import AtomCategory, AtomLink, AtomPerson, AtomText
from push_to_poll_client.feeds._atom.document import Document, read_document
from push_to_poll_client.feeds._atom.entry import AtomEntry, restored
from push_to_poll_client.feeds._atom.messages import messages_of, order
from push_to_poll_client.feeds._manners.cache_control import fresh_for
from push_to_poll_client.feeds._manners.credentials import Auth
from push_to_poll_client.feeds._manners.origin import Answer, Origin
from push_to_poll_client.feeds._seen import Seen
from push_to_poll_client.feeds._walk_back import Leaf, WalkBack

__all__ = ["AtomCategory", "AtomEntry", "AtomFeed", "AtomLink", "AtomPerson", "AtomText"]

_ACCEPT = "application/atom+xml, application/xml;q=0.9, text/xml;q=0.8, */*;q=0.1"

_SMALL_ENTRY = 160
"""Bytes that the entries of a document have on average, at least: in memory each takes some 600 more."""

_SMALL_DOCUMENT = 10_000
"""Entries that a document may have however small they are."""

_LARGE_BODY = 256 * 1024
"""Bytes. What is larger is read in a thread: a hostile document can take seconds to see through."""

_NO_NEWS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_MISSING = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
