"""FROM AN ANSWER to what walking back needs to know of it."""

import httpx

from push_to_poll_client._exceptions import FeedError, FeedRefused
from push_to_poll_client._http.caching import fresh_for
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._http.response import Answer
from push_to_poll_client._types import Message
from push_to_poll_client.feeds._atom.complete import compared, noted, recalled
from push_to_poll_client.feeds._atom.document import Document, read_document
from push_to_poll_client.feeds._atom.messages import messages_of
from push_to_poll_client.feeds._walk_back import Leaf

__all__ = ["leaf_of"]


def leaf_of(answer: Answer, note: str, *, newest: bool, most: int) -> Leaf:
    """Read a document.

    Args:
        answer: With it.
        note: What was remembered of the newest document.
        newest: It is that one.
        most: Entries that it may have.

    Raises:
        FeedRefused: It is an archive, and should be the newest.
        FeedError: It cannot be read.
    """
    if not answer.body.strip():
        raise FeedError(f"{answer.where} sent nothing where a document should be ({answer.status})")
    content_type = answer.headers.get("content-type", "")
    try:
        document = read_document(answer.body, content_type, _base(answer), most=most)
        messages, note = (
            _all_there_is(document, note) if document.complete else (messages_of(document.entries), "")
        )
    except ValueError as error:
        raise FeedError(f"{answer.where} sent a document that {error}", retry_after=answer.retry_after) from None
    if newest:
        _check_is_newest(document, answer)
    archive = None if document.complete else document.links.get("prev-archive")
    return Leaf(
        messages,
        older=archive or (None if document.complete else document.links.get("next")),
        stable=archive is not None,
        size=document.size,
        validators=answer.validators,
        note=note,
        retry_after=answer.within_poll,
        poll_interval=answer.retry_after,
        whole=document.complete,
        fresh_for=fresh_for(answer.headers),
    )


def _all_there_is(document: Document, note: str) -> tuple[list[Message], str]:
    """The messages of a complete feed, of what is gone the newest, and what is to be remembered of them."""
    before = recalled(note)
    again = {name: kept.again for name, kept in before.items()}
    messages = messages_of(document.entries, again)
    deletions, memory = compared(before, document.entries, messages)
    return [*deletions, *messages], noted(memory, len(messages))


def _base(answer: Answer) -> str:
    """Without the query, in which a secret may be, and to which nothing is relative but "" and "?"."""
    return str(httpx.URL(answer.url).copy_with(query=None, fragment=None))


def _check_is_newest(document: Document, answer: Answer) -> None:
    """An archive does not change (RFC 5005 §4): whoever begins there would never see anything new."""
    current = document.links.get("current")
    if document.archive and current is not None and current not in {answer.url, _base(answer)}:
        raise FeedRefused(
            f"{answer.where} is an archive of a feed, which does not change; give the URL of its newest document, "
            f"{without_secrets(current)}"
        )
