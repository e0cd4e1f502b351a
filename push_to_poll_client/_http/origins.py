"""Which URLs may be asked, as whom, and what may be shown of them.

Not on disk: a redirect by mistake is then over with the process, and the WARNING names what to configure.
"""

import hashlib
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias
from urllib.parse import quote

import anyio
import httpx

from push_to_poll_client._exceptions import FeedError

__all__ = [
    "MAX_REMEMBERED_REDIRECTS",
    "Origin",
    "Origins",
    "Redirects",
    "URLSecrets",
    "identity",
    "origin_of",
    "parse_http_url",
    "parse_origins",
    "without_secrets",
]


_MAX_SHOWN = 300  # characters of a URL in a log line

# RFC 3986 appendix B, which splits every string there is.
_URL = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?")
# What is left of an authority without userinfo; anything else may hide a password and is not shown.
_HOST = re.compile(r"(?:\[[0-9A-Za-z:.%]+\]|[^\s:@\\\[\]]+)(?::[0-9]*)?")


def without_secrets(url: object) -> str:
    """A URL as it may stand in errors, logs, `repr` and status.

    Args:
        url: A `str`, or what `str()` makes a URL of. Garbage is welcome.

    Returns:
        Scheme, host, port and path, without userinfo and fragment; of the query the names, each value replaced
        by "…". At most 300 characters, all printable.
    """
    shown, _ = _redacted_and_query(str(url))
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 1] + "…"


def identity(url: object) -> str:
    """What tells one feed from another, without secrets.

    Args:
        url: As for `without_secrets`.

    Returns:
        The URL without secrets, and if it has a query a digest of it: two feeds that differ in their queries
        differ here. A secret in the query becomes part of what the feed is, so it belongs in a header.
    """
    shown, query = _redacted_and_query(str(url))
    if not query:
        return shown
    return f"{shown}#{hashlib.sha256(query.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _redacted_and_query(url: str) -> tuple[str, str]:
    """The URL as it may be shown, and its query."""
    scheme, authority, path, query = _URL.findall(url)[0]
    host = authority.rpartition("@")[2]
    if not scheme or not _HOST.fullmatch(host):
        return "(not a URL)", url
    names = "&".join(_redact_field(field) for field in re.split("[&;]", query))
    shown = f"{scheme.lower()}://{host.lower()}{path}" + (f"?{names}" if query else "")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown), query


def _redact_field(field: str) -> str:
    name, equals, _ = field.partition("=")
    return f"{name}=…" if equals else "…"  # a field without "=" is as likely a key to something as a name


def parse_http_url(url: str) -> httpx.URL:
    """Take an address apart.

    Raises:
        TypeError: It is no `str`.
        ValueError: It is no absolute http address. Its secrets are not in the text.
    """
    if not isinstance(url, str):
        raise TypeError(f"url is a {type(url).__name__}; give a str")
    try:
        parsed = httpx.URL(url)
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError):  # whose text may quote a piece of a password
        raise ValueError(f"url is no URL: {without_secrets(url)}") from None
    if parsed.scheme not in {"http", "https"} or not host:
        raise ValueError(
            f"url is {without_secrets(url)}; give an absolute one that begins with http:// or https://"
        )
    return parsed


Origin: TypeAlias = tuple[bytes, bytes, int | None]
"""An origin (RFC 9110 §4.3.1): scheme, host and port, `None` for the scheme's own."""


def origin_of(url: httpx.URL) -> Origin:
    """The origin. By the raw host: decoding one that a server made up can fail."""
    return url.raw_scheme, url.raw_host, url.port


def parse_origins(trusted: Collection[str]) -> frozenset[Origin]:
    if isinstance(trusted, str) or not isinstance(trusted, Collection):
        raise TypeError(f"trusted is a {type(trusted).__name__}; give a list of origins")
    return frozenset(map(_parse_origin, trusted))


def _parse_origin(text: str) -> Origin:
    if not isinstance(text, str):
        raise TypeError(f"trusted has a {type(text).__name__} in it; give str")
    try:
        url = parse_http_url(text)
    except ValueError:
        url = httpx.URL()
    if not url.host or url.userinfo or url.query or url.fragment or url.path != "/":
        raise ValueError(f"trusted has {without_secrets(text)} in it; give origins, as https://cdn.example")
    return origin_of(url)


MAX_SECRET = 4096
"""Characters. Tokens in URLs have some 50."""

_SCHEME_AND_AUTHORITY = re.compile(r"[^:/?#]*:?//[^/?#]*")


class URLSecrets:
    """Fills the fields of a URL, `https://api.example/bot{token}/updates`, and puts them back into what is shown.

    Args:
        template: With a field in braces for each secret, in its path or query.
        secrets: By the names of the fields.

    Attributes:
        where: The template without what else is secret in it.
        url: Filled, each secret percent-encoded but for what every path may have (RFC 3986 §3.3).
        identity: What the feed is, without secrets. Another secret is another feed: behind another token there
            are other messages, and no cursor is good for both.

    Raises:
        TypeError: A name or a secret is no `str`.
        ValueError: A secret is empty, or has no field, or one where no secret can stand.
    """

    def __init__(self, template: str, secrets: Mapping[str, str]) -> None:
        self.where = without_secrets(template)
        self.url = template
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        for name, secret in sorted(_check_secrets(template, secrets).items(), key=lambda item: -len(item[1])):
            self.url = self.url.replace(f"{{{name}}}", quote(secret, safe=":@"))
            self._patterns.append((_secret_pattern(secret), f"{{{name}}}"))
        self.identity = identity(template)
        if secrets:
            digest = hashlib.sha256(self.url.encode(errors="surrogatepass")).hexdigest()
            self.identity = f"{self.where}#{digest[:8]}"
        self.redact: Callable[[object], str] = self._redact if secrets else without_secrets
        """A URL as `without_secrets` shows it, and without these secrets, whoever wrote it."""

    def mask(self, text: str) -> str:
        """Any text, with the fields in place of their secrets."""
        for form, field in self._patterns:
            text = form.sub(field, text)
        return text

    def _redact(self, url: object) -> str:
        return without_secrets(self.mask(str(url)))


def _check_secrets(template: str, secrets: Mapping[str, str]) -> Mapping[str, str]:
    authority = _SCHEME_AND_AUTHORITY.match(template)
    for name, secret in secrets.items():
        if not (isinstance(name, str) and isinstance(secret, str)):
            raise TypeError(f"secrets have a {type(secret).__name__} for {name!r}; give str for both")
        field = f"{{{name}}}"
        if not 0 < len(secret) <= MAX_SECRET:
            raise ValueError(f"the secret {name!r} has {len(secret)} characters; give 1 to {MAX_SECRET}")
        if field not in template or (authority is not None and field in authority[0]):
            raise ValueError(f"url has no field {field} in its path or query for the secret {name!r}")
    return secrets


def _secret_pattern(secret: str) -> re.Pattern[str]:
    """It as it is and percent-encoded in any way, since servers write URLs anew."""
    forms = (f"(?:{_encoded(char)}|{re.escape(char)})" for char in secret)
    return re.compile("".join(forms))


def _encoded(char: str) -> str:
    octets = char.encode(errors="surrogatepass")
    return "".join(f"(?i:%{octet:02x})" for octet in octets)


class Origins:
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

    def __init__(self, url: httpx.URL, hidden: URLSecrets, trusted: Collection[str]) -> None:
        self.where = hidden.where
        self._url_secrets = hidden
        self._feed_origin = origin_of(url)
        self._origin_prefix = str(url.copy_with(raw_path=b"/"))
        self._trusted = parse_origins(trusted)

    def check_url(self, url: str, *, leads: str, posted: bool) -> tuple[str, bool]:
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
        if url.startswith(self._origin_prefix) and "#" not in url:  # as a rule, and that costs nothing
            return url, True
        try:
            target = httpx.URL(url).copy_with(userinfo=b"", fragment=None)
        except httpx.InvalidURL:  # whose text may quote a piece of a secret
            raise FeedError(f"{self.where} {leads} to what is no URL; ask its publisher") from None
        at_home = origin_of(target) == self._feed_origin
        if not at_home:
            self._check(target, leads, posted=posted)
        return str(target), at_home

    def is_same_origin(self, url: str) -> bool:
        """Whether it is of the feed's own origin."""
        return url.startswith(self._origin_prefix) or origin_of(httpx.URL(url)) == self._feed_origin

    def describe_source(self, url: str) -> str:
        """Who said something, for errors: the feed, or another origin that it led to."""
        return (
            self.where
            if self.is_same_origin(url)
            else f"{self.where}, which led to {self._url_secrets.redact(url)},"
        )

    def _check(self, target: httpx.URL, leads: str, *, posted: bool) -> None:
        there = self._url_secrets.redact(f"{target.scheme}://{target.netloc.decode('ascii')}/")
        if origin_of(target) not in self._trusted:
            raise FeedError(
                f"{self.where} {leads} to another origin, {there}, which credentials must not follow; if the "
                "feed has moved there, give its new URL, or have it asked without them: trusted="
            )
        if posted:
            raise FeedError(f"{self.where} {leads} to another origin, {there}, which must not get what is posted")
        if self._url_secrets.mask(str(target)) != str(target):
            raise FeedError(
                f"{self.where} {leads} to another origin, {there}, by a URL that holds a secret which is not its"
            )


MAX_REMEMBERED_REDIRECTS = 16
"""Of one feed. Its pages move together, by their path."""

MAX_CONFIRMED_PATHS = 16
"""Paths of one feed at which redirects ended and a page was read: one for each path that the feed has."""

MAX_STEPS = 5
"""From where a feed was once to where it is now."""

MAX_AGE = 3600.0
"""Seconds until the old URL is looked at again, 24 requests a day: a maintenance page that says "for good", and
"200 OK" of itself, is over then."""

_logger = logging.getLogger("push_to_poll_client")


class Redirects:
    """Knows the new URL for an old one. All in an event loop, by whose clock it forgets.

    Args:
        shown: What stands in the log for a URL.
    """

    def __init__(self, shown: Callable[[object], str]) -> None:
        self._redact = shown
        self._paths: OrderedDict[str, str] = OrderedDict()
        self._urls: OrderedDict[str, str] = OrderedDict()
        self._confirmed: OrderedDict[str, None] = OrderedDict()
        self._since = 0.0
        self._last_warned: str | None = None

    def resolve(self, url: str) -> str:
        """Where to ask for what was at this URL."""
        if not self._paths and not self._urls:
            return url
        if not 0 <= anyio.current_time() - self._since < MAX_AGE:
            self.forget()
        for _ in range(MAX_STEPS):
            path, mark, query = url.partition("?")
            if url in self._urls:
                url = self._urls[url]
            elif path in self._paths:
                url = f"{self._paths[path]}{mark}{query}"
            else:
                break
        return url

    def learn(self, old: str, new: str) -> None:
        """Remember a move. One that kept the query holds for every query: a feed moves with all its pages.

        A WARNING tells of it, once for each place that it leads to.
        """
        if not self._paths and not self._urls:
            self._since = anyio.current_time()
        (old_path, _, query), (new_path, _, new_query) = old.partition("?"), new.partition("?")
        if query == new_query:
            _remember(self._paths, old_path, new_path)
        else:
            _remember(self._urls, old, new)
        there = self._redact(new)
        if there != self._last_warned:
            self._last_warned = there
            _logger.warning("%s has moved for good: configure its new URL, %s", self._redact(old), there)

    def confirm(self, url: str) -> None:
        """Note that redirects led to a page of the feed at this URL, so that errors from there are believed."""
        self._confirmed[_path(url)] = None
        self._confirmed.move_to_end(_path(url))
        if len(self._confirmed) > MAX_CONFIRMED_PATHS:
            self._confirmed.popitem(last=False)

    def is_confirmed(self, url: str) -> bool:
        """Return True if redirects led to a page of the feed at the path of this URL before."""
        return _path(url) in self._confirmed

    def forget(self) -> None:
        """Begin at the old URLs again: something is wrong with the new ones, and it may be the move."""
        self._paths.clear()
        self._urls.clear()


def _path(url: str) -> str:
    return url.partition("?")[0]


def _remember(moves: OrderedDict[str, str], old: str, new: str) -> None:
    moves.pop(new, None)  # whoever moved back has not moved
    if old != new:
        moves[old] = new
        if len(moves) > MAX_REMEMBERED_REDIRECTS:
            moves.popitem(last=False)
