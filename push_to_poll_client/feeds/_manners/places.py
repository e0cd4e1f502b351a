"""Which URLs may be asked, and which of them as whom the user is: the feed's own origin, and those trusted."""

from collections.abc import Collection

import httpx

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client.feeds._manners.arguments import origins, place_of
from push_to_poll_client.feeds._manners.hidden import Hidden

__all__ = ["Places"]


class Places:
    """The origins that a feed reads from.

    Args:
        url: The feed's, without user and password.
        hidden: What of it is not shown.
        trusted: Others that it may lead to.

    Attributes:
        where: The feed's URL without secrets, for errors.

    Raises:
        TypeError: `trusted` is of the wrong type.
        ValueError: One of them is no origin.
    """

    def __init__(self, url: httpx.URL, hidden: Hidden, trusted: Collection[str]) -> None:
        self.where = hidden.where
        self._hidden = hidden
        self._home = place_of(url)
        self._start = str(url.copy_with(raw_path=b"/"))
        self._trusted = origins(trusted)

    def allowed(self, url: str, *, leads: str, posted: bool) -> tuple[str, bool]:
        """What to ask.

        Args:
            url: From whomever.
            leads: What the feed does by it, for errors: it "links" or "redirects".
            posted: Whether a body is to be sent, which may well hold a secret.

        Returns:
            The URL without user, password and fragment; and whether it is of the feed's own origin, so that
            credentials may go there.

        Raises:
            FeedError: It is no URL, or is of an origin that is not trusted, or not with a body or a secret.
        """
        if url.startswith(self._start) and "#" not in url:  # as a rule, and that costs nothing
            return url, True
        try:
            target = httpx.URL(url).copy_with(userinfo=b"", fragment=None)
        except httpx.InvalidURL:  # whose text may quote a piece of a secret
            raise FeedError(f"{self.where} {leads} to what is no URL; ask its publisher") from None
        at_home = place_of(target) == self._home
        if not at_home:
            self._check(target, leads, posted=posted)
        return str(target), at_home

    def is_home(self, url: str) -> bool:
        """Whether it is of the feed's own origin."""
        return url.startswith(self._start) or place_of(httpx.URL(url)) == self._home

    def shown(self, url: str) -> str:
        """Who said something, for errors: the feed, or another origin that it led to."""
        return self.where if self.is_home(url) else f"{self.where}, which led to {self._hidden.shown(url)},"

    def _check(self, target: httpx.URL, leads: str, *, posted: bool) -> None:
        there = self._hidden.shown(f"{target.scheme}://{target.netloc.decode('ascii')}/")
        if place_of(target) not in self._trusted:
            raise FeedError(
                f"{self.where} {leads} to another origin, {there}, which credentials must not follow; if the "
                "feed has moved there, give its new URL, or have it asked without them: trusted="
            )
        if posted:
            raise FeedError(f"{self.where} {leads} to another origin, {there}, which must not get what is posted")
        if self._hidden.masked(str(target)) != str(target):
            raise FeedError(
                f"{self.where} {leads} to another origin, {there}, by a URL that holds a secret which is not its"
            )
