"""Rows for HTTP: header fields, bodies, URLs and statuses, as a server sends them."""

import contextlib
import gzip
import re
import zlib
from email.utils import formatdate

import httpx

from push_to_poll_client import FeedError
from push_to_poll_client._http import headers as http
from push_to_poll_client._http.addresses import address_in, is_public, peer_of
from push_to_poll_client._http.caching import (
    MAX_FRESH,
    Validators,
    conditional_headers,
    directives,
    fresh_for,
    is_cacheable,
    validators_of,
)
from push_to_poll_client._http.client import Client
from push_to_poll_client._http.headers import http_date, requested_delay
from push_to_poll_client._http.origins import (
    FeedURL,
    identity,
    without_secrets,
)
from push_to_poll_client._http.redirects import MAX_REMEMBERED_REDIRECTS, Redirects
from push_to_poll_client._http.response import (
    BodyError,
    error_for_exception,
    error_for_status,
    find_link,
    read_body,
)
from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client._validation import describe, one_line, quoted
from push_to_poll_client.feeds._base import EndOfFeed
from tests.fuzz.answers import URL, answer_of, direct_client, fields, in_loop, response_of, written
from tests.fuzz.fuzzed import Fuzzed, around, text_of, words
from tests.support.identities import cheap_identities

__all__ = ["ROWS"]

NOW = 1_700_000_000.0
SECRET = "s3cr%t/ü"
HEADER_TOKENS = words(r', ; = " \\ \x20 \t a 0 \n : \xff "a", \\"')


def headers_of(data):
    return httpx.Headers(fields(data))


def read_links(data):
    answer = answer_of(b"200\n" + data)
    for relation in ("next", "https://rel.example/Other"):
        target = find_link(answer, relation)
        assert target is None or httpx.URL(target).is_absolute_url or httpx.URL(target).scheme


def read_validators(data):
    headers = headers_of(data)
    known = validators_of(headers, Validators('"before"', None))
    if known is not None:
        assert Validators.of(*known) == known
        for value in conditional_headers(known).values():
            httpx.Headers({"x": value}).raw  # noqa: B018  # it can be sent
            assert http.is_header_value(value)
    validators_of(headers)


def read_cache_control(data):
    headers = headers_of(data)
    assert 0.0 <= fresh_for(headers) <= MAX_FRESH
    assert isinstance(is_cacheable(headers), bool)
    told = directives(headers)
    assert all(name == name.lower() and name.isascii() for name in told)
    again = ", ".join(f'{name}="{value}"' if value else name for name, value in told.items())
    assert directives({"cache-control": again}) == told


def read_waits(data):
    headers = headers_of(data)
    for status in (200, 403, 429):
        wait = requested_delay(status, headers, NOW)
        assert wait is None or 0.0 <= wait <= MAX_NOT_BEFORE


def read_date(data):
    text = data.decode("latin-1")
    seconds = http_date({"date": text}, "date")
    if seconds is not None and 0 <= seconds < 2e11:
        assert http_date({"date": formatdate(seconds, usegmt=True)}, "date") == int(seconds)


def read_url(data):
    for text in (data.decode("latin-1"), text_of(data)):
        shown = without_secrets(text)
        assert len(shown) <= 300
        assert shown.isprintable()
        assert without_secrets(f"https://user:{SECRET}@host.example/{text}").find(SECRET) < 0
        with cheap_identities():
            assert identity(text).isprintable()


class _Stream:
    def __init__(self, address):
        self.address = address

    def get_extra_info(self, _name):
        return (self.address, 80)


def read_address(data):
    """Parse a host, in a URL and as the other end of a connection."""
    text = text_of(data)
    found = [peer_of(_Stream(text))]
    with contextlib.suppress(httpx.InvalidURL, UnicodeError):
        found.append(address_in(httpx.URL(f"http://{text}/")))
    for address in found:
        if address is not None:
            assert is_public(address) in {True, False}
            assert is_public(
                f"::ffff:{address}" if "." in address and ":" not in address else address
            ) == is_public(address)


def read_text(data):
    text = text_of(data)
    for shown in (quoted(text), describe(ValueError(text)), one_line(text)):
        assert shown.isprintable()
        assert len(shown) <= 1300


def read_refusal(data):
    response = response_of(data)
    error = httpx.HTTPStatusError("", request=httpx.Request("GET", URL), response=response)
    response.request = error.request
    for found in (error_for_exception(error), error_for_status(response.status_code, None, "the feed")):
        assert isinstance(found, FeedError)
        assert str(found).isprintable()


def read_packed(data):
    encoding, _, body = data.partition(b"\n")
    answer = response_of(b"200\ncontent-encoding: " + encoding + b"\n\n" + body)
    unpacked = in_loop(lambda: read_body(answer, 4096, lambda _: None))
    assert len(unpacked) <= 4096
    if encoding == b"gzip" and body:
        assert zlib.decompressobj(31).decompress(body) == unpacked


_hidden = FeedURL("https://api.example/bot{token}/updates?x={other}", {"token": SECRET, "other": "aaab"})


def read_hidden(data):
    text = text_of(data)
    masked = _hidden.mask(text)
    is_shown = re.compile(f"aaab|{re.escape(SECRET)}", re.IGNORECASE).search  # hosts are masked in lower case too
    assert not is_shown(masked)
    assert _hidden.redact(text).isprintable()
    if not is_shown(text) and "%" not in text:
        assert masked == text


_places = FeedURL(URL, {}, ["https://cdn.example"])


def read_place(data):
    text = data.decode("utf-8", "replace")
    for posted in (False, True):
        url, at_home = _places.check_url(text, verb="links", posted=posted)
        assert _places.is_same_origin(url) == at_home
        assert _places.describe_source(url).isprintable()
        home = "api.vendor.example" if at_home else "cdn.example"
        # A URL that begins like the feed's may be invalid. The client rejects it.
        assert url.startswith("https://api.vendor.example/") or httpx.URL(url).host == home
        assert _places.check_url(url, verb="links", posted=posted) == (url, at_home)


def read_moves(data):
    async def learn():
        moves = Redirects(without_secrets)
        urls = text_of(data).split("\n")
        for old, new in zip(urls[::2], urls[1::2], strict=False):
            moves.learn(old, new)
            assert isinstance(moves.resolve(old), str)
        assert len(moves._moved) <= MAX_REMEMBERED_REDIRECTS

    in_loop(learn)


def read_exchange(data):
    """Read any response to a request, including redirects and errors."""
    origin = Client(
        URL,
        auth="t0ken",
        headers={"x-key": "k"},
        timeout=30,
        max_body=4096,
        client=direct_client(data),
        trusted_origins=["https://cdn.example"],
    )

    async def ask():
        tail = EndOfFeed()
        for method, content in (("GET", None), ("POST", b"{}")):
            answer = await origin.send_request(
                URL, headers={}, method=method, content=content, max_error_body=1024
            )
            assert len(answer.body) <= 4096
            assert isinstance(origin.check_status(answer).validators, Validators | None)
            tail.note(URL, answer, empty=True)
            assert isinstance(tail.is_fresh(URL), bool)

    in_loop(ask)


ROWS = (
    Fuzzed(
        name="links",
        modules=("_http.headers", "_http.response"),
        read=read_links,
        errors=(FeedError,),
        examples=(
            b'link: <https://api.vendor.example/events?page=2>; rel="next", </e?p=9>; rel=last',
            b'link: <?a,b>; title="a, <b>; rel=next \\" c"; REL="prev Next"; rel=x; anchor="#y"',
            b"link: <//[::1>; rel=next",
            b'link: <../e>;rel*=x;rel="https://rel.example/other"',
        ),
        tokens=(
            *words(r"< > <> <a>; rel= rel=next anchor= next .. /../ ["),
            *HEADER_TOKENS,
        ),
        frame=(b"link: ", b""),
        hostile={
            "links": around(b"link: ", b"<a>; rel=prev, "),
            "parameters": around(b"link: <a>", b'; a="b"', b"; rel=next"),
            "escapes": around(b'link: <a>; title="', b"\\"),
            "spaces in a target": around(b"link: <", b" ", b"a>; rel=next"),
            "steps up": around(b"link: <", b"../", b"a>; rel=next"),
            "relations": around(b'link: <a>; rel="', b"x ", b'next"'),
            "fields": around(b"", b"link: <a>; rel=x\n"),
        },
    ),
    Fuzzed(
        name="addresses",
        modules=("_http.addresses",),
        read=read_address,
        examples=(b"127.0.0.1", b"[::ffff:10.0.0.1]", b"fe80::1%eth0", b"0x7f.1", b"localhost.", b"a.example:80"),
        tokens=words(r"127. 0x 0177 :: ffff: % [ ] . :80 @ localhost 64:ff9b:: \xff"),
        frame=(b"[", b"]"),
        hostile={
            "steps": around(b"a", b".a", b""),
            "zeros": around(b"1", b"0", b""),
            "groups": around(b"[", b":0", b"]"),
        },
    ),
    Fuzzed(
        name="validators",
        modules=("_http.caching",),
        read=read_validators,
        examples=(
            b'etag: W/"abc"\nlast-modified: Tue, 14 Nov 2023 22:13:20 GMT\ndate: Tue, 14 Nov 2023 22:13:21 GMT',
            b"etag: abc\ncache-control: no-store",
            b"last-modified: Tuesday, 14-Nov-23 22:13:20 GMT",
        ),
        tokens=(
            *words(r"etag:\x20 last-modified:\x20 date:\x20 W/ GMT * Tue,\x20"),
            *HEADER_TOKENS,
        ),
        frame=(b"etag: ", b""),
        hostile={
            "quotes": around(b'etag: "', b'"'),
            "a date": around(b"last-modified: Tue, ", b"14 ", b"Nov 2023"),
            "a zone": around(b"last-modified: Tue, 14 Nov 2023 22:13:20 +", b"9"),
        },
    ),
    Fuzzed(
        name="cache-control",
        modules=("_http.caching",),
        read=read_cache_control,
        examples=(
            b'cache-control: public, max-age=60, stale-if-error="6"\nage: 3',
            b'cache-control: no-cache="a, b", max-age="1\\0"',
        ),
        tokens=(
            *words(r"max-age= no-cache no-store age:\x20"),
            *HEADER_TOKENS,
        ),
        frame=(b"cache-control: ", b""),
        hostile={
            "strings": around(b"cache-control: ", b'a="b", '),
            "escapes": around(b'cache-control: a="', b"\\"),
            "digits": around(b"cache-control: max-age=", b"9"),
            "age": around(b"cache-control: max-age=1\nage: ", b"9"),
        },
    ),
    Fuzzed(
        name="waits",
        modules=("_http.headers",),
        read=read_waits,
        examples=(
            b"retry-after: 120\ndate: Tue, 14 Nov 2023 22:13:20 GMT",
            b"retry-after: Tue Nov 14 22:13:20 2023\nx-poll-interval: 60\nbackoff: 1.5",
            b'ratelimit: "default";r=0;t=30, "other";r=5\nratelimit-policy: "default";q=100',
            b"ratelimit: limit=100, remaining=0, reset=30",
            b"x-ratelimit-remaining: 0\nx-ratelimit-reset: 1700000060\nage: 0",
        ),
        tokens=(
            *words(r"retry-after:\x20 ratelimit:\x20 r=0 t=9 remaining=0 reset= Tue,\x20 GMT - ."),
            *HEADER_TOKENS,
        ),
        frame=(b"ratelimit: ", b""),
        hostile={
            "policies": around(b"ratelimit: ", b'"a";r=0;t=1, '),
            "parameters": around(b"ratelimit: a", b";b"),
            "strings": around(b"ratelimit: ", b'"a" '),
            "spaces": around(b"ratelimit: a;", b" ", b"r=0"),
            "an old one": around(b"ratelimit: ", b"reset=1, "),
            "digits": around(b"retry-after: ", b"9"),
            "days": around(b"retry-after: Tue, ", b"14 "),
            "commas": around(b"retry-after: Tue", b","),
            "dashes": around(b"retry-after: Tue, 14", b"-"),
            "colons": around(b"retry-after: Tue, 14 Nov 2023 ", b"1:"),
            "zone": around(b"retry-after: Tue, 14 Nov 2023 22:13:20 +", b"9"),
        },
    ),
    Fuzzed(
        name="dates",
        modules=("_http.headers",),
        read=read_date,
        examples=(
            b"Tue, 14 Nov 2023 22:13:20 GMT",
            b"Tuesday, 14-Nov-23 22:13:20 GMT",
            b"Tue Nov 14 22:13:20 2023",
        ),
        tokens=words(r"Tue ,\x20 \x20 - : 14 Nov GMT + 0 9 . ( EST"),
        hostile={"digits": around(b"Tue, 14 Nov ", b"9", b" 22:13:20 GMT")},
    ),
    Fuzzed(
        name="urls that are shown",
        modules=("_http.origins",),
        read=read_url,
        examples=(
            b"https://user:secret@api.example:8443/v1/events?key=secret&flag#frag",
            b"http://[::1]:80/",
            b"//a\\b@c/%00\x1b[31m",
        ),
        tokens=words(r"http : / // ? # @ & ; = [ ] \\ % \x20 a \xff"),
        frame=(b"https://h", b""),
        hostile={
            "a query": around(b"https://h/?", b"a=b&"),
            "user and password": around(b"https://", b"a@", b"h/"),
            "a scheme": around(b"", b"a"),
            "ports": around(b"https://h", b":1"),
        },
    ),
    Fuzzed(
        name="texts that are shown",
        modules=("_validation",),
        read=read_text,
        examples=(b"all is well", b"\x1b[31m\r\nERROR \xe2\x80\xae"),
        tokens=words(r"""\x1b \r\n ' " \\ \xe2\x80\xae \xff a """),
    ),
    Fuzzed(
        name="refusals",
        modules=("_http.response", "_http.headers"),
        read=read_refusal,
        examples=(
            b"429\nretry-after: 3",
            b"403\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 60",
            b"410",
            b"404",
            b"503",
        ),
        tokens=words(r"429\n retry-after:\x20 x-ratelimit-reset:\x20 9 \n :"),
        frame=(b"429\n", b""),
    ),
    Fuzzed(
        name="bodies",
        modules=("_http.response",),
        read=read_packed,
        errors=(BodyError,),
        examples=(
            b"gzip\n" + gzip.compress(b"hello " * 10, mtime=0),
            b"gzip\n" + gzip.compress(b"hello", mtime=0) + b"\0\0",
            b"gzip\n" + gzip.compress(b"\0" * 9000, mtime=0),
            b"deflate\n" + zlib.compress(b"hello"),
            b"deflate\n" + zlib.compress(b"hello")[2:-4],
            b"identity\nplain",
            b"br\n?",
        ),
        tokens=words(r"gzip\n deflate\n \n \x1f\x8b\x08 \x00 x\x9c \xff\xff \x03\x00"),
        frame=(b"gzip\n\x1f\x8b\x08\0\0\0\0\0\0\x03", b""),
        hostile={
            "zeros": lambda n: b"gzip\n" + gzip.compress(b"\0" * n),
            "padding": lambda n: b"gzip\n" + gzip.compress(b"a", mtime=0) + b"\0" * n,
            "empty blocks": around(b"deflate\n", b"\0\0\0\xff\xff"),
            "an encoding": around(b"", b"gzip, ", b"\nx"),
        },
    ),
    Fuzzed(
        name="hidden secrets",
        modules=("_http.origins",),
        read=read_hidden,
        examples=(
            f"https://api.example/bot{SECRET}/updates?x=aaab".encode(),
            b"see https://api.example/bots3cr%25t%2F%C3%bC/x",
            b"https://api.example/updates?x=aaaB",
        ),
        tokens=words(r"s3cr % %25 %2f t/ \xc3\xbc %C3%BC a aaa aaab %61"),
        hostile={"nearly": around(b"", SECRET.encode()[:-2])},
    ),
    Fuzzed(
        name="places",
        modules=("_http.origins",),
        read=read_place,
        errors=(FeedError,),
        examples=(
            URL.encode(),
            b"https://user:pw@api.vendor.example:443/events#x",
            b"https://cdn.example/x?y",
            b"https://evil.example/",
            "https://ü.example/".encode(),
            b"http://[::1]:80/",
            b"//api.vendor.example/",
        ),
        tokens=words(r"https:// api.vendor.example / ? # @ : [ ] % xn-- . \xc3\xbc 9 \t"),
        frame=(b"https://cdn.example/", b""),
        hostile={
            "labels": around(b"https://", b"a.", b"/"),
            "a label": around(b"https://", "ü".encode(), b"/"),
            "digits": around(b"https://1", b".1", b"/"),
            "ports": around(b"https://h:", b"9", b"/"),
            "groups": around(b"https://[", b"1:", b"]/"),
            "percents": around(b"https://api.vendor.example/#", b"%"),
        },
        found=(b"https://api.vendor.example:?43/",),
    ),
    Fuzzed(
        name="moves",
        modules=("_http.redirects",),
        read=read_moves,
        examples=(
            b"https://a.example/1?x\nhttps://a.example/2?x",
            b"https://a.example/1\nhttps://a.example/2?y\nhttps://a.example/2?y\nhttps://a.example/1",
        ),
        tokens=words(r"https://a.example/ ? \n 1 2 x"),
        hostile={
            "there and back": around(b"", b"a\nb\nb\na\n"),
            "a way": lambda n: b"\n".join(b"%d" % i for i in range(n)),
        },
    ),
    Fuzzed(
        name="exchanges",
        modules=("_http.client", "_http.response", "feeds._base", "_http.direct_client"),
        read=read_exchange,
        errors=(FeedError,),
        examples=(
            written(b'200\netag: "1"\ncache-control: max-age=5\n\n[]', b"200\n\n{}"),
            written(b"301\nlocation: /moved", b"200\n\n[]"),
            written(b"302\nlocation: https://evil.example/"),
            written(b"307\nlocation: //cdn.example/x", b"200\ncontent-encoding: gzip\n\nx"),
            written(b"308\nlocation: https:/events", b"304\n"),
            written(b"401\nwww-authenticate: Bearer", b"503\nretry-after: 5\n\nsorry"),
            written(b"429\nretry-after: Tue, 14 Nov 2023 22:13:20 GMT"),
        ),
        tokens=words(
            r"200\n 301\n 307\n 303\n 401\n 304\n 429\n location:\x20 https:// // [ ] : @ ? # % xn-- "
            r"\n\n \n=====\n content-encoding:\x20gzip\n \xff \x20 "
        ),
        frame=(b"301\nlocation: ", b""),
        hostile={
            "steps up": around(b"301\nlocation: ", b"../"),
            "slashes": around(b"301\nlocation: ", b"/"),
            "redirects": around(b"", b"302\nlocation: x\n=====\n"),
            "a label": around(b"301\nlocation: https://", "ü".encode(), b"/"),
            "fields": around(b"200\n", b"x: y\n", b"\n\n"),
            "a body": around(b"200\n\n", b"x"),
        },
        found=(b"301\nlocation: :https://[",),
    ),
)
