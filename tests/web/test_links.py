"""Links of a response by RFC 8288: cases that httpx and others read differently, and invalid ones."""

import re

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http import headers
from push_to_poll_client._http.headers import MAX_LINKS
from push_to_poll_client._http.response import Response, find_link

BASE = "https://h.example/a/b?c=d"


def answer(*fields):
    return Response(200, httpx.Headers([("Link", field) for field in fields]), b"", None, BASE, where="h.example")


@pytest.mark.parametrize(
    ("field", "target"),
    [
        ("<https://h.example/p?page=2>; rel=next", "https://h.example/p?page=2"),
        ('<https://h.example/p?page=2>; rel="next", <https://h.example/p?page=9>; rel="last"', "/p?page=2"),
        ('<https://h.example/p?page=9>; rel="last",<https://h.example/p?page=2>;rel="next"', "/p?page=2"),
        # Relative links, resolved against the URL of the response.
        ("<c>; rel=next", "https://h.example/a/c"),
        ("</c>; rel=next", "https://h.example/c"),
        ("<?after=5>; rel=next", "https://h.example/a/b?after=5"),
        ("<>; rel=next", BASE),
        ("<//cdn.example/p>; rel=next", "https://cdn.example/p"),
        # Separators also occur in brackets and strings.
        ("</c?ids=1,2;x>; rel=next", "https://h.example/c?ids=1,2;x"),
        ('</c>; title="a, <x>; rel=last"; rel=next', "https://h.example/c"),
        ('</x>; title="a, </y>; rel=next"; rel=prev', None),
        (r'</c>; title="a \"; rel=last; \" b"; rel=next', "https://h.example/c"),
        ('</c>; title="x=y"; rel=next', "https://h.example/c"),
        ("</c>; title*=UTF-8''%e2%82; rel=next", "https://h.example/c"),
        # Names of relations and parameters.
        ('</c>; rel="prev  next"', "https://h.example/c"),
        ("</c>; REL=Next", "https://h.example/c"),
        (r'</c>; rel="ne\xt"', "https://h.example/c"),
        ("</c> ; rel = next ", "https://h.example/c"),
        ("</c>;;;rel=next;", "https://h.example/c"),
        ("</c>; rel=nextish, </d>; rel=xnext, </e>; rel=next-archive", None),
        ("</c>; rel=prev; rel=next", None),  # the first one counts
        ("</c>; rel; rel=next", None),
        ("</c>; rev=next", None),
        ("</c>", None),
        # Links whose context is another resource.
        ("</c>; rel=next; anchor=/other, </d>; rel=next", "https://h.example/d"),
        ('</c>; rel=next; anchor="#part"', None),
        ("</c>; rel=next; anchor=http://[", None),
        ('</c>; rel=next; anchor=""', "https://h.example/c"),
        (f"</c>; rel=next; anchor={BASE}", "https://h.example/c"),
        # Invalid text around a link.
        ("x, ,,<, ;=;, </c>; rel=next", "https://h.example/c"),
        ("<x>rel=next, </c>; rel=next", "https://h.example/c"),
        ('<x> "a, <y>; rel=next"; rel=next, </c>; rel=next', "https://h.example/c"),
        ('</c>; rel="next', "https://h.example/c"),
        ('</c>; rel="next\\', "https://h.example/c"),
        ("</c; rel=next", None),
        ("rel=next", None),
        ("", None),
    ],
)
def test_the_link_header_gives_the_url_of_the_next_page(field, target):
    expected = f"https://h.example{target}" if target and target.startswith("/p") else target
    assert find_link(answer(field), "next") == expected


def test_several_link_headers_are_read_as_one():
    assert find_link(answer("</c>; rel=prev", "</d>; rel=next"), "next") == "https://h.example/d"


def test_an_answer_without_a_link_header_has_no_next_link():
    assert find_link(answer(), "next") is None


def test_a_link_relation_may_be_a_url():
    named = answer('</c>; rel="https://api.example/Rels/hub next"')
    assert find_link(named, "HTTPS://api.example/rels/hub") == "https://h.example/c"


@pytest.mark.parametrize("target", ["https://h.example:port/s3cr3t", "//[::s3cr3t", "http://xn--ü/s3cr3t"])
def test_a_link_to_an_invalid_url_is_a_feed_error(target):
    with pytest.raises(FeedError, match="sent a 'next' link that is not a URL") as failed:
        find_link(Response(200, {"link": f"<{target}>; rel=next"}, b"", None, BASE, where="h.example"), "next")
    assert "s3cr3t" not in str(failed.value)
    assert failed.value.__cause__ is None


def test_more_links_than_the_limit_without_the_relation_are_a_feed_error():
    many = "</c>; rel=prev," * MAX_LINKS
    assert find_link(answer(many[len("</c>; rel=prev,") :] + "</d>; rel=next"), "next") == "https://h.example/d"
    assert find_link(answer(many), "next") is None
    with pytest.raises(FeedError, match=r"^h\.example sent more than 100 links; the first ones do not include"):
        find_link(answer(many + "</d>; rel=next"), "next")


PIECES = ['"', "\\", "<", ">", ";", ",", "=", "rel", "next", " ", "a", "[", "//"]


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_link_header_gives_an_absolute_url_or_none_or_a_feed_error(field):
    try:
        target = find_link(
            Response(200, {"link": f"<c>; rel=next; {field}"}, b"", None, BASE, where="h.example"), "next"
        )
        find_link(Response(200, {"link": field}, b"", None, BASE, where="h.example"), "next")
    except FeedError:
        return
    assert target is None or httpx.URL(target).is_absolute_url


def repetitions(parsed):
    for operation, arguments in parsed:
        if "REPEAT" in str(operation):
            yield str(operation)
        for part in arguments if isinstance(arguments, tuple | list) else ():
            for inner in part if isinstance(part, list) else [part]:
                if isinstance(inner, re._parser.SubPattern):
                    yield from repetitions(inner)


@pytest.mark.parametrize("pattern", [headers._LINK, headers._PARAMETERS])
def test_the_link_patterns_have_only_possessive_repetitions(pattern):
    """A repetition without backtracking takes linear time for every field."""
    assert set(repetitions(re._parser.parse(pattern.pattern, pattern.flags))) == {"POSSESSIVE_REPEAT"}
