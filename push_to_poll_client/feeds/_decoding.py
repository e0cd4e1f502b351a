"""Limits for decoding a page, in which thread it is done, and how broken JSON is split into entries.

A parser fails a whole page because of one bad byte or one value nested too deep. What is here reads only
strings, brackets and commas, without recursion and in time linear in the text, and takes the rest on trust.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import to_thread

__all__ = [
    "MAX_ID",
    "MAX_UNREADABLE",
    "UNREADABLE_KEY_PREFIX",
    "max_messages",
    "run_decoder",
    "split_json",
    "unreadable_key",
]


MAX_ID = 1024
"""Characters of an id, and of what else stands in a key. Real ones have some dozens; a store keeps each twice."""

MAX_UNREADABLE = 10_000
"""Unreadable entries on one page: each costs a kilobyte, a byte of the page is enough to make one."""

UNREADABLE_KEY_PREFIX = "unreadable:"
"""What the dedupe keys of entries begin with that cannot be read."""

_MIN_MESSAGE_BYTES = 160
"""Bytes that the messages of a page have on average, at least: in memory each takes some 600 more."""

_ALWAYS_ALLOWED = 10_000
"""Messages that a page may have however small they are; it is the largest page that is common among feeds."""

_LARGE_BODY = 1024 * 1024
"""Bytes. What is larger is read in a thread: a hostile page can take ten seconds to see through."""

P = ParamSpec("P")
T = TypeVar("T")


def max_messages(max_body: int) -> int:
    """How many messages a page may have, by the bytes that it may have."""
    return max(max_body // _MIN_MESSAGE_BYTES, _ALWAYS_ALLOWED)


async def run_decoder(size: int, read: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What `read(*args, **options)` returns or raises; for a large body it runs in a worker thread.

    Args:
        size: Bytes that are read.
        read: Touches nothing that another thread might. When the poll is cancelled it runs on, unheard.
        args: Its.
        options: Its.
    """
    if size <= _LARGE_BODY:
        return read(*args, **options)
    return await to_thread.run_sync(partial(read, *args, **options), abandon_on_cancel=True)


def unreadable_key(raw: bytes) -> str:
    """The dedupe key of an entry that cannot be read: corrected it is another message.

    Args:
        raw: The entry as it came.
    """
    return f"{UNREADABLE_KEY_PREFIX}{hashlib.sha256(raw).hexdigest()[:32]}"


# A string that is not closed reaches to the end, so that no byte is looked at twice. Hence possessive, too.
_STRING = rb'"(?:[^"\\]++|\\.)*+"?'
_TOP_LEVEL_TOKEN = re.compile(_STRING + rb"|[\[{]|[\]}]|,", re.DOTALL)
_NESTED_TOKEN = re.compile(_STRING + rb"|[\[{]++|[\]}]", re.DOTALL)
_SPACE = b" \t\r\n"


def split_json(text: bytes, brackets: bytes) -> Iterator[bytes]:
    """The elements of a JSON array, or the members of an object, as they stand in the text.

    Args:
        text: The array or object; space around it is allowed.
        brackets: `b"[]"` or `b"{}"`, what the text has to stand in.

    Yields:
        The bytes between the commas, without space around them. Whether they are JSON is not looked at.

    Raises:
        ValueError: The text does not stand in these brackets, is closed too early or too late, or has nothing
            between two commas. Found out on the way: what was yielded before is worth nothing.
    """
    text = text.strip(_SPACE)
    if not (text.startswith(brackets[:1]) and text.endswith(brackets[1:])):
        raise ValueError(f"it does not stand in {brackets.decode()}")
    start = 0
    for stop in _boundaries(text):
        part = text[start + 1 : stop].strip(_SPACE)
        if part:
            yield part
        elif text[1:-1].strip(_SPACE):
            raise ValueError("nothing stands between two commas")
        start = stop
    if start != len(text) - 1:
        raise ValueError("something stands after its end")


def _boundaries(text: bytes) -> Iterator[int]:
    """Where the commas of the outermost array or object are, and last its end."""
    depth, at = 1, 1
    while token := (_TOP_LEVEL_TOKEN if depth == 1 else _NESTED_TOKEN).search(text, at):
        at = token.end()
        match token[0][:1]:
            case b"[" | b"{":
                depth += at - token.start()
            case b"]" | b"}":
                depth -= 1
            case b",":
                yield token.start()
        if not depth:
            yield token.start()
            return
    raise ValueError("it ends in the middle")
