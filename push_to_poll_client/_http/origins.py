"""Decide which origins a feed may reach, and hide the secrets of URLs.

`without_secrets` and `FeedURL` produce the form of a URL for errors, logs and status. `FeedURL` also decides if a
URL may be requested, and if credentials go with the request.
"""

import functools
import hashlib
import re
from collections.abc import Collection, Mapping
from typing import TypeAlias
from urllib.parse import quote, unquote_plus

import httpx

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._secrets import mask, pattern_of

_MAX_SHOWN = 300  # characters of a URL in a log line

# RFC 3986 appendix B, which splits every string there is.
_URL = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?")
# What is left of an authority without userinfo; anything else may hide a password and is not shown.
_HOST = re.compile(r"(?:\[[0-9A-Za-z:.%]+\]|[^\s:@\\\[\]]+)(?::[0-9]*)?")

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_PAGE_SIZE_PARAMETERS = frozenset({"limit", "perpage", "pagesize", "maxresults", "$top", "page[size]"})
"""Parameters that only say how many entries a page has; in lower case, without "_" and "-"."""
# The names of GitHub, Stripe, CouchDB, Google, OData and JSON:API. Not `count` (a flag), `size` (of a product),
# `top`, `first` and `max`, although some servers use them for this. A parameter wrongly left out of the identity
# makes two feeds look the same, which loses messages; one wrongly kept costs a rebind.


def without_secrets(url: object) -> str:
    """Return a URL, valid or not, as it may be shown in errors, logs, `repr` and status."""
    return _cut(mask(_redacted_and_query(str(url))[0]))


def _cut(shown: str) -> str:
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 1] + "…"


def identity(url: object) -> str:
    """Return a name that tells one feed from another, without secrets."""
    # Feeds that differ in their queries have different digests. A new secret in the query makes a new name, so
    # secrets belong in a header.
    shown, query = _redacted_and_query(_without_page_size(str(url)))
    return f"{shown}#{_slow_digest(query, shown)}" if query else shown


def former_identities(url: object) -> tuple[str, ...]:
    """Return the names by which state files of earlier versions know a feed, newest first."""
    # The digest was a fast one of 32 bits; before that, the page size was a part of the name.
    names = []
    for written in (_without_page_size(str(url)), str(url)):
        shown, query = _redacted_and_query(written)
        names.append(f"{shown}#{_digest(query)}" if query else shown)
    return tuple(names)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


_SCRYPT_COST = 2**14
"""Of scrypt (RFC 7914), with blocks of 8: about 50 ms and 16 MiB per guess, and once per feed."""

_DIGEST_BYTES = 3
"""16 million values: enough to tell apart the few feeds of one consumer name or process."""


@functools.lru_cache(maxsize=1024)
def _slow_digest(text: str, where: str) -> str:
    """Return a short digest of a text that may hold a secret. It is shown."""
    # Guessing is as slow as this function. The URL as salt makes a table for one feed useless for another. The
    # digest is short, so many of a large number of secrets fit it.
    try:
        digest = hashlib.scrypt(
            text.encode(errors="surrogatepass"),
            salt=where.encode(errors="surrogatepass"),
            n=_SCRYPT_COST,
            r=8,
            p=1,
            dklen=_DIGEST_BYTES,
        )
    except (AttributeError, ValueError):  # not compiled in, or not allowed, as in FIPS mode
        raise ValueError(
            f"cannot derive an identity for {where}: this Python's OpenSSL has no scrypt; pass identity="
        ) from None
    return digest.hex()


def _without_page_size(url: str) -> str:
    """Normalise a URL, without the parts that do not make another feed."""
    scheme, authority, path, query = _URL.findall(url)[0]
    scheme, host = scheme.lower(), authority.rpartition("@")[2].lower()
    if not scheme or not _HOST.fullmatch(host):
        return url
    host = host.removesuffix(_DEFAULT_PORTS.get(scheme, "")).removesuffix(":")
    fields = [field for field in query.split("&") if field and not _is_page_size(field)]
    # Sorted by name alone: the order of the values of one name may matter.
    fields.sort(key=lambda field: field.partition("=")[0])
    return f"{scheme}://{host}{path or '/'}{'?' if fields else ''}{'&'.join(fields)}"


def _is_page_size(field: str) -> bool:
    name, _, value = field.partition("=")
    name = unquote_plus(name).lower().replace("_", "").replace("-", "")
    return name in _PAGE_SIZE_PARAMETERS and value.isascii() and value.isdigit()


def page_size_of(url: str) -> int | None:
    """Return the page size that a URL asks for; None if it does not say exactly one."""
    sizes = [field for field in url.partition("?")[2].partition("#")[0].split("&") if _is_page_size(field)]
    return int(sizes[0].partition("=")[2][:9]) if len(sizes) == 1 else None


def _redacted_and_query(url: str) -> tuple[str, str]:
    scheme, authority, path, query = _URL.findall(url)[0]
    host = authority.rpartition("@")[2]
    if not scheme or not _HOST.fullmatch(host):
        return "(not a URL)", url
    fields = (field.partition("=") for field in re.split("[&;]", query))
    # A field without "=" is as likely a secret as a name.
    names = "&".join(f"{name}=…" if equals else "…" for name, equals, _ in fields)
    shown = f"{scheme.lower()}://{host.lower()}{path}" + (f"?{names}" if query else "")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown), query


def check_userinfo(url: str) -> None:
    """Raise a ValueError if host and port may really be a user and the start of a password."""
    # In `https://user:12/34@host/` the first slash ends the authority: the request would go to the host "user",
    # and errors would show the rest of the password. `localhost:8000/@x` and `shop.example:8000/@x` are valid.
    _, authority, path, _ = _URL.findall(url)[0]
    _, at, host = authority.rpartition("@")
    host, port, _ = host.partition(":")
    is_host = not port or "." in host or host.startswith("[") or host.lower() == "localhost"
    if "@" in (path or url.partition(f"//{authority}")[2]) and (at or not is_host):
        raise ValueError(
            "url has an @ after its first /, ? or #, possibly within a password; write these characters in a "
            "password as %2F, %3F, %23 and %40, and an @ in a path as %40"
        )


def parse_http_url(url: str) -> httpx.URL:
    """Parse an absolute http:// or https:// URL. Its errors show no secrets."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, got {type(url).__name__}")
    try:
        parsed = httpx.URL(url)
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError):  # whose text may quote a piece of a password
        raise ValueError(
            f"url cannot be parsed: {without_secrets(url)}; write /, ?, # and @ in a password as %2F, %3F, %23 "
            "and %40"
        ) from None
    check_userinfo(url)
    if parsed.scheme not in {"http", "https"} or not host:
        raise ValueError(f"url must start with http:// or https://, got {without_secrets(url)}")
    return parsed


Origin: TypeAlias = tuple[bytes, bytes, int | None]
"""An origin (RFC 9110 §4.3.1): scheme, host and port; `None` means the default port of the scheme."""


def origin_of(url: httpx.URL) -> Origin:
    # The raw host, since decoding a host that a server made up can fail.
    return url.raw_scheme, url.raw_host, url.port


def _parse_origin(text: str) -> Origin:
    if not isinstance(text, str):
        raise TypeError(f"trusted_origins must contain only str, got {type(text).__name__}")
    check_userinfo(text)
    try:
        url = parse_http_url(text)
    except ValueError:
        url = httpx.URL()
    if not url.host or url.userinfo or url.query or url.fragment or url.path != "/":
        raise ValueError(
            f"trusted_origins must contain only origins such as https://cdn.example, got {without_secrets(text)}"
        )
    return origin_of(url)


MAX_SECRET = 4096
"""Longest secret, in characters. Tokens in URLs have about 50."""

_SCHEME_AND_AUTHORITY = re.compile(r"[^:/?#]*:?//[^/?#]*")


class FeedURL:
    """URL of a feed with its secrets, and the origins that the feed may read from."""

    def __init__(self, template: str, secrets: Mapping[str, str], trusted_origins: Collection[str] = ()) -> None:
        # A field in braces marks each secret in path or query: `https://api.example/bot{token}/updates`.
        self.where = without_secrets(template)
        filled, named = template, _without_page_size(template)
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        for name, secret in sorted(_check_secrets(template, secrets).items(), key=lambda item: -len(item[1])):
            field, value = f"{{{name}}}", quote(secret, safe=":@")  # allowed in paths, RFC 3986 §3.3
            filled, named = filled.replace(field, value), named.replace(field, value)
            self._patterns.append((pattern_of(secret), field))  # servers rewrite URLs, so in any encoding
        self._named = named
        self._template = template
        self.former_identities: tuple[str, ...] = former_identities(template)
        if secrets:
            self.former_identities = (
                f"{_cut(_redacted_and_query(_without_page_size(template))[0])}#{_digest(named)}",
                f"{_cut(_redacted_and_query(template)[0])}#{_digest(filled)}",
            )
        self.url = httpx.URL(filled)
        self._origin = origin_of(self.url)
        self._origin_prefix = str(self.url.copy_with(userinfo=b"", fragment=None, raw_path=b"/"))
        if isinstance(trusted_origins, str) or not isinstance(trusted_origins, Collection):
            raise TypeError(f"trusted_origins must be a list of origins, got {type(trusted_origins).__name__}")
        self._trusted = frozenset(map(_parse_origin, trusted_origins))

    @functools.cached_property
    def identity(self) -> str:
        """Name of the feed without secrets; takes about 50 ms with a query or a secret."""
        # Another secret makes another identity: another token sees other messages, so the cursor is useless.
        if not self._patterns:
            return identity(self._template)
        # Not by `without_secrets`, whose answer depends on whose secrets are hidden.
        shown = _cut(_redacted_and_query(_without_page_size(self._template))[0])
        return f"{shown}#{_slow_digest(self._named, shown)}"

    def mask(self, text: str) -> str:
        """Replace secrets in a text by their fields."""
        for pattern, field in self._patterns:
            text = pattern.sub(field, text)
        return text

    def redact(self, url: object) -> str:
        """Return any URL as by `without_secrets`, with these secrets replaced by their fields."""
        return without_secrets(self.mask(str(url)))

    def check_url(self, url: str, *, verb: str, posted: bool) -> tuple[str, bool]:
        """Return the URL to request, and True if it has the feed's own origin, where credentials may go."""
        if url.startswith(self._origin_prefix) and "#" not in url:  # the usual case, and cheap
            return url, True
        try:
            target = httpx.URL(url).copy_with(userinfo=b"", fragment=None)
        except httpx.InvalidURL:  # whose text may quote a piece of a secret
            raise FeedError(f"{self.where} {verb} to an invalid URL; report it to the publisher") from None
        same_origin = origin_of(target) == self._origin
        if not same_origin:
            self._check_trusted(target, verb, posted=posted)
        return str(target), same_origin

    def is_same_origin(self, url: str) -> bool:
        """Return True if the URL has the feed's own origin."""
        return url.startswith(self._origin_prefix) or origin_of(httpx.URL(url)) == self._origin

    def describe_source(self, url: str) -> str:
        """Name the source of a response for errors: the feed, or another origin that it led to."""
        return self.where if self.is_same_origin(url) else f"{self.where}, which led to {self.redact(url)},"

    def _check_trusted(self, target: httpx.URL, verb: str, *, posted: bool) -> None:
        there = self.redact(f"{target.scheme}://{target.netloc.decode('ascii')}/")
        if origin_of(target) not in self._trusted:
            raise FeedError(
                f"{self.where} {verb} to another origin, {there}, which must not get credentials; if the feed "
                "moved there, configure its new URL; to read it without credentials, add it to trusted_origins="
            )
        if posted:  # the body may hold a secret
            raise FeedError(
                f"{self.where} {verb} to another origin, {there}, which must not get the request body; if the "
                "feed moved there, configure its new URL"
            )
        if self.mask(str(target)) != str(target):
            raise FeedError(
                f"{self.where} {verb} to another origin, {there}, with a secret of this feed in the URL; if the "
                "feed moved there, configure its new URL"
            )


def _check_secrets(template: str, secrets: Mapping[str, str]) -> Mapping[str, str]:
    authority = _SCHEME_AND_AUTHORITY.match(template)
    for name, secret in secrets.items():
        if not (isinstance(name, str) and isinstance(secret, str)):
            raise TypeError(f"url_secrets must map str to str, got {type(secret).__name__} for {name!r}")
        field = f"{{{name}}}"
        if not 0 < len(secret) <= MAX_SECRET:
            raise ValueError(f"the secret {name!r} must have 1 to {MAX_SECRET} characters, got {len(secret)}")
        if field not in template or (authority is not None and field in authority[0]):
            raise ValueError(f"url must contain {field} in its path or query, since url_secrets has {name!r}")
    return secrets
