"""Notices that replicas send each other by NOTIFY: wakes, freed names, names that are wanted.

A payload has less than 8,000 bytes (PostgreSQL, NOTIFY). Anyone who can connect to the database can send any
payload, so what cannot be read is ignored. A notice is a hint: a lost one costs time, never a message.
"""

import json
from enum import StrEnum
from hashlib import blake2b
from typing import Any, NamedTuple

from push_to_poll_client._types import Push

MAX_PAYLOAD = 7_900
"""Bytes. Hints that make a payload longer are left out."""

_MAX_TOPICS = 64
"""Most topics of a notice. With more it has none, which means all."""


class Kind(StrEnum):
    """What a notice says about a name."""

    WAKE = "wake"  # a push has arrived
    FREED = "freed"  # its owner has released it
    WANTED = "wanted"  # its owner is to hand over
    TEST = "test"  # nothing: the store tests whether it hears itself


DIGEST_BYTES = 16
"""Two keys of a billion have the same digest with a probability of 10^-21."""


def digest_of(text: str) -> bytes:
    """Return `DIGEST_BYTES` bytes that stand for a name or a key."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


class Notice(NamedTuple):
    """One notice. `digest` is the digest of a consumer's name, or any bytes for a test."""

    kind: Kind
    digest: bytes
    push: Push | None = None

    def encode(self) -> str:
        """Return the payload, in ASCII."""
        told: dict[str, Any] = {"kind": self.kind, "name": self.digest.hex()}
        if self.push is None:
            return json.dumps(told)
        push = self.push
        topics = push.topics if len(push.topics) <= _MAX_TOPICS else ()
        for hints in ({"cursor": push.cursor, "topics": topics, "count": push.count}, {"cursor": push.cursor}):
            payload = json.dumps({**told, "push": hints})
            if len(payload) <= MAX_PAYLOAD:
                return payload
        return json.dumps(told)


def merge_pushes(first: Push | None, second: Push | None) -> Push | None:
    """Merge two wakes into one that stands for both."""
    # A push that names the saved cursor may be ignored, so a cursor must be the one of both.
    if first == second or first is None or second is None:
        return first if first == second else Push()
    both = first.topics and second.topics
    topics = tuple(dict.fromkeys((*first.topics, *second.topics))) if both else ()
    if len(topics) > _MAX_TOPICS:  # wakes may wait for a server that is away, and more and more come
        topics = ()
    return Push(first.cursor if first.cursor == second.cursor else None, topics)


def decode_notice(payload: str) -> Notice | None:
    """Return the notice of a payload, or None if it is none."""
    try:
        told = json.loads(payload)
        hints = told.get("push")
        push = None if hints is None else Push(hints.get("cursor"), hints.get("topics", ()), hints.get("count"))
        return Notice(Kind(told["kind"]), bytes.fromhex(told["name"]), push)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
