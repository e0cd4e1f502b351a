"""Rows for a store in PostgreSQL: notices of anyone, stored values, and addresses of stores."""

from types import SimpleNamespace

from push_to_poll_client import DeadLetter, StoreError
from push_to_poll_client.cli._output import UsageError
from push_to_poll_client.cli._stores import DatabaseStore, find_store
from push_to_poll_client.stores._postgres.dead_letters import decode_dead_letter
from push_to_poll_client.stores._postgres.notices import MAX_PAYLOAD, decode_notice
from push_to_poll_client.stores._postgres.reader import _owner, _progress, _stored_values
from tests.fuzz.fuzzed import Fuzzed, nested, text_of, words
from tests.fuzz.rows_feeds import JSON_TOKENS

__all__ = ["ROWS"]

SECRET = "s3cret-value"


def read_notice(data):
    notice = decode_notice(data.decode("ascii", "replace"))
    if notice is not None:
        payload = notice.encode()
        assert len(payload) <= MAX_PAYLOAD
        assert decode_notice(payload).digest == notice.digest


def read_row(data):
    """Read a row of a consumer and of a dead letter, whose values are lines of the input."""
    name, feed, cursor, instance, attempts, gap = (data.split(b"\n") + [b"{}"] * 6)[:6]
    with _stored_values("the tables"):
        row = (1, name, feed, cursor, 2, 3, 4, 5.5, instance, 6.5, False)
        progress = _progress(row, {"attempts": attempts, "gap": gap})
        assert _owner(row).name == progress.name == name.decode("utf-8", "surrogatepass")
        letter = decode_dead_letter((name, True, False, feed, 1, 1.0, 2.0, cursor, instance, gap))
        assert isinstance(letter, DeadLetter)
        assert letter.raw == gap


def read_store(data):
    """Find the store of any text, and of a URL with it behind a password."""
    for text in (text_of(data), f"postgresql://me:{SECRET}@{text_of(data)}"):
        try:
            store = find_store(SimpleNamespace(store=text, schema=None))
        except UsageError as error:
            assert SECRET not in str(error)  # noqa: PT017  # not an assertion about the error alone
        else:
            assert SECRET not in store.where
            assert not isinstance(store, DatabaseStore) or store.where.isprintable()


ROWS = (
    Fuzzed(
        name="notices of replicas",
        modules=("stores._postgres.notices",),
        read=read_notice,
        examples=(
            b'{"kind": "wake", "name": "00ff", "push": {"cursor": "c", "topics": ["a"], "count": 2}}',
            b'{"kind": "freed", "name": ""}',
        ),
        tokens=(*words(r'"kind": "wake" "name": "00" "push": "topics": "cursor": "count":'), *JSON_TOKENS),
        frame=(b'{"kind": "wake", "name": "00", "push": {"topics": [', b"]}}"),
        hostile={"nested": nested(b"[", b"]", b'{"kind": "wake", "name": "00", "push": ', b"}")},
    ),
    Fuzzed(
        name="rows of a store in PostgreSQL",
        modules=("stores._postgres.reader", "stores._postgres.dead_letters"),
        read=read_row,
        errors=(StoreError,),
        examples=(
            b'name\nfeed\ncursor\nweb-1:7\n{"1":[1,0.0]}\n{"what":"lost","at":1.5,"place":"p"}',
            b'\xed\xa0\x80\n\nc\ni\n{"\\ud800":[1,0.0]}\n{"what":"w","at":1}',
        ),
        tokens=(*words(r'\xed\xa0\x80 {"what": "at": 1e999'), *JSON_TOKENS),
        frame=(b"n\nf\nc\ni\n", b'\n{"what":"w","at":1}'),
        hostile={"nested": nested(b"[", b"]", b"n\nf\nc\ni\n", b'\n{"what":"w","at":1}')},
    ),
    Fuzzed(
        name="addresses of stores",
        modules=("cli._stores", "stores._postgres.connection"),
        read=read_store,
        examples=(b"postgresql://me@db.example:5432/shop?sslmode=require", b"sqlite:orders.db", b"orders.db"),
        tokens=words(
            r"postgresql:// postgres:// sqlite: // : @ / ? = & % %00 host= port= dbname= , [ ] \x20 \xff 9"
        ),
        frame=(b"postgresql://", b"/shop"),
    ),
)
