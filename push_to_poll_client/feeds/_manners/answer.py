"""What a server said, beside the body."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._manners.validators import Validators, validators_of

__all__ = ["READ", "Answer"]

READ = frozenset({200, 203, 204, 304})
"""What is an answer; the others are refusals."""


class Answer(NamedTuple):
    """What the server said.

    Attributes:
        status: Of any kind.
        headers: By names in whatever case.
        body: Unpacked.
        retry_after: Seconds that the server asks to be left alone; `None` when it did not.
        url: What answered, after redirects: what links in the answer are relative to. It may hold secrets.
        known: By what it was asked for news alone; `None`: for all there is.
        redirected: Whether another URL answered than was asked.
        where: Who said it, for errors, without secrets: the feed, or another origin that it led to.
        within_poll: As `retry_after`, before a further page of the same poll.
        moves: The permanent redirects that were followed to this answer, each as its old and its new URL.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after: float | None
    url: str
    known: Validators | None = None
    redirected: bool = False
    where: str = ""
    within_poll: float | None = None
    moves: tuple[tuple[str, str], ...] = ()

    @property
    def media_type(self) -> str:
        """What it calls itself, in lower case and without parameters; "" when it does not."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def wrong_type(self, right: str) -> FeedError:
        """The error for what calls itself something else than this feed can read: `right` says what that is."""
        stated = quoted(self.headers.get("content-type", ""))
        return FeedError(
            f"{self.where} sent {stated}, {right}; check that the URL is that of a feed and no login page stands "
            "before it"
        )

    @property
    def validators(self) -> Validators | None:
        """By what to ask for news alone the next time, once all that came is settled; `None`: for all again.

        They belong to the URL that was asked: an answer by way of a redirect has none.
        """
        if self.redirected:
            return None
        return validators_of(self.headers, self.known if self.status == HTTPStatus.NOT_MODIFIED else None)
