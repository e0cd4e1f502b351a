"""Rows for webhooks: any request, before and after its verification."""

from push_to_poll_client.cli._webhook import MAX_PORT, parse_address
from push_to_poll_client.listeners._webhook.asgi import check_length, request_of
from push_to_poll_client.listeners._webhook.routing import MAX_NAMES, names_at
from push_to_poll_client.listeners._webhook.types import RequestRejected, WebhookRequest
from push_to_poll_client.listeners.handshakes import (
    MAX_ECHO,
    cloudevents_origins,
    dropbox_challenge,
    graph_validation,
)
from tests.fuzz.fuzzed import Fuzzed, around, nested, text_of, words

__all__ = ["ROWS"]

HANDSHAKES = (dropbox_challenge(), graph_validation(), cloudevents_origins({"events.example"}))
names = names_at("a.b")


def read_request(data):
    """Handle a request; the lines are method, path, query and the values of two headers."""
    method, path, query, length, origin = (*data.split(b"\n", 4), b"", b"", b"", b"")[:5]
    scope = {
        "method": method.decode("latin-1"),
        "path": path.decode("utf-8", "replace"),
        "root_path": "/hooks",
        "query_string": query,
        "headers": [(b"content-length", length), (b"WebHook-Request-Origin", origin), (b"\xff", data)],
    }
    request = request_of(scope)
    assert request.path
    assert not request.path.startswith("/hooks/") or path.startswith(b"/hooks/hooks")
    assert request.headers["webhook-request-origin"] == origin.decode("latin-1")
    for handshake in HANDSHAKES:
        answer = handshake(request)
        if answer is not None:
            assert len(answer.body.decode()) <= MAX_ECHO
            assert answer.body.decode().isprintable()
    check_length(request.headers, 1024)
    assert not length.strip().isdigit() or int(length[:19]) <= 1024


def read_address(data):
    """Parse values of --webhook."""
    host, port = parse_address(text_of(data))
    assert host
    assert not {*"[]@ "} & {*host}
    assert 0 <= port <= MAX_PORT


def read_names(data):
    """Read the topic names in a body."""
    found = names(WebhookRequest(body=data))
    assert len(found) <= MAX_NAMES + 1
    assert all(isinstance(name, str) and name for name in found)


ROWS = (
    Fuzzed(
        name="addresses to listen at",
        modules=("cli._webhook",),
        read=read_address,
        errors=(ValueError,),
        examples=(b"127.0.0.1:8080", b"[::1]:0", b"localhost:65535", b"x:65536", b"::1:80"),
        tokens=words(r"127.0.0.1 : [ ] :: 8080 % @ 9 \x00 \xff \x20 \n"),
        frame=(b"x", b":80"),
        hostile={"digits": around(b"x:", b"9")},
    ),
    Fuzzed(
        name="requests to webhooks",
        modules=("listeners._webhook.asgi", "listeners._webhook.types"),
        read=read_request,
        errors=(RequestRejected,),
        examples=(
            b"GET\n/hooks/a\nchallenge=a%20b\n0\n",
            b"POST\n/hooks\nvalidationToken=Validation%3A+x\n99999999999999999999\n",
            b"OPTIONS\n/\n\n10\nevents.example",
            b"POST\n/a\n\n-1\n",
        ),
        tokens=words(r"challenge= validationToken= & ; %00 %C3%A9 %FF + = /hooks / 9 \xff , events.example \n"),
        frame=(b"GET\n/hooks\n", b"\n5\n"),
        hostile={
            "fields": around(b"GET\n/\nchallenge=x", b"&a=1", b"\n"),
            "digits": around(b"POST\n/\n\n", b"9", b"\n"),
        },
    ),
    Fuzzed(
        name="names in pushes",
        modules=("listeners._webhook.routing", "listeners._webhook.types", "listeners._hints"),
        read=read_names,
        examples=(b'{"a": {"b": ["alice", "bob", 7]}}', b'{"a": [{"b": "x"}, {"b": null}, {}]}', b"x", b"[[]]"),
        tokens=words(r'{ } [ ] " , : "a" "b" null true 1e9 -7 \x00 \xff \\ud800 {"a":{"b": {"a":[{"b":"x"}]}'),
        frame=(b'{"a": {"b": [', b"]}}"),
        hostile={
            "names": around(b'{"a": {"b": [', b'"x",', b'"y"]}}'),
            "lists": nested(b"[", b"]", b'{"a":', b"}"),
            "objects": nested(b'{"a":', b"}", b"", b""),
        },
    ),
)
