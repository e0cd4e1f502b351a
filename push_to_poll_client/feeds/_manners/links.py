"""Where does an answer of a feed lead to?"""

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._links import MAX_LINKS, TooManyLinks, resolved, targets
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._manners.answer import Answer

__all__ = ["MAX_LINKS", "link", "resolved"]


def link(answer: Answer, relation: str) -> str | None:
    """Where the first link of this relation leads.

    Args:
        answer: Of a server.
        relation: Its type: "next", or a URL for one that is nobody's standard. Case says nothing.

    Returns:
        The target, absolute: resolved against what answered. It may be of another origin, which `Origin.ask`
        looks at, and hold secrets. `None`: there is no such link.

    Raises:
        FeedError: There is one, and it leads to no URL; or there are too many others before it. Taken for none,
            it would look like the end of the feed.
    """
    try:
        target = next(targets(answer.headers.get("link", ""), relation, answer.url), None)
    except TooManyLinks:
        raise FeedError(
            f"{answer.where} has more than {MAX_LINKS} links, and none of the first is what was sought"
        ) from None
    if target is None:
        return None
    url = resolved(target, answer.url)
    if url is None:
        raise FeedError(f"{answer.where} links to its {quoted(relation)} by what is no URL")
    return url
