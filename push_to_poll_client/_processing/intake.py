"""WHAT IS NEW: makes of a page's messages what is to be done.

The user's functions of a message are called here and nowhere else. A message for which one of them fails is a
message that fails (G9), and does not come to the handler.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import Final, TypeAlias

from push_to_poll_client._exceptions import ContentChanged, UndecodableMessage
from push_to_poll_client._processing.progress import Progress
from push_to_poll_client._processing.work import Item
from push_to_poll_client._text import describe, quoted
from push_to_poll_client._types import Message, Record

__all__ = ["DedupeKey", "Fingerprint", "Intake", "Key", "Odd"]

DedupeKey: TypeAlias = Callable[[Message], str]
Key: TypeAlias = Callable[[Message], Hashable]
Fingerprint: TypeAlias = Callable[[Message], bytes]

_key_of = attrgetter("key")

Odd: TypeAlias = Mapping[str, UndecodableMessage]
"""By dedupe key, why a message cannot be told from others."""

NONE_ODD: Final[Odd] = MappingProxyType({})

FINGERPRINT_BITS: Final = 63
"""A changed message goes unnoticed once in 9·10^18, and a store keeps 8 bytes of it."""


class Intake:
    """Reads of a message what it is known by.

    Args:
        progress: Knows what was settled before.
        dedupe_key: What "already processed" is asked of; `None`: the message's key.
        key: What messages share that must not overtake each other; `None`: all of them do.
        fingerprint: What must not change under a dedupe key; `None`: nothing is looked at.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        dedupe_key: DedupeKey | None,
        key: Key | None,
        fingerprint: Fingerprint | None,
    ) -> None:
        self._progress = progress
        self._dedupe_key = dedupe_key
        self._key = key
        self._fingerprint = fingerprint

    def known_as(self, messages: Sequence[Message]) -> tuple[list[str], Odd]:
        """The dedupe keys, and for which of them the user's function failed.

        Such a message has a key of its own, which no other message gets from that function.
        """
        if self._dedupe_key is None:
            return list(map(_key_of, messages)), NONE_ODD
        keys, odd = list[str](), dict[str, UndecodableMessage]()
        for message in messages:
            try:
                keys.append(message.key if message.error else _text(self._dedupe_key(message)))
            except Exception as error:  # noqa: BLE001  # whatever the user's function raises
                keys.append(f"dedupe_key= failed: {message.key}")
                odd[keys[-1]] = _undecodable(message, "dedupe_key=", error)
        return keys, odd

    def records(self, messages: Sequence[Message]) -> list[Record]:
        """The records of messages that the handler is about to get."""
        keys, _ = self.known_as(messages)
        known = zip(keys, messages, strict=True)
        return [Record(key, fingerprint=self._fingerprint_of(message)) for key, message in known]

    def _fingerprint_of(self, message: Message) -> int | None:
        """What stands for its content; `None`: that is not looked at, or cannot be, as of a dead letter."""
        if self._fingerprint is None:
            return None
        try:
            return _number(self._fingerprint(message))
        except Exception:  # noqa: BLE001  # likewise
            return None

    async def items(
        self,
        messages: Sequence[Message],
        keys: Sequence[str],
        new: Iterable[bool],
        odd: Odd,
        *,
        in_hand: Iterable[Item],
        read_at: float,
        arrived: float,
    ) -> list[Item]:
        """What is to be done.

        Args:
            messages: Of a page.
            keys: Theirs.
            new: Whether each is to be settled.
            odd: Why that cannot be said of some.
            in_hand: What came before and is not settled yet.
            read_at: When their page arrived, on the event loop's clock.
            arrived: When they came to hand, likewise.

        Raises:
            StoreError: The store failed.
        """
        items = [
            Item(key, message, message.cursor, read_at, arrived, settled=not is_new)
            for key, message, is_new in zip(keys, messages, new, strict=True)
        ]
        if self._key is not None or self._fingerprint is not None or odd:
            for item in items:
                if not item.settled:
                    self._prepare(item, odd)
        if self._fingerprint is not None and any(item.settled for item in items):
            await self._compare(items, in_hand, self._fingerprint)
        return items

    def _prepare(self, item: Item, odd: Odd) -> None:
        """Its lane and its fingerprint. One of which they cannot be said has a lane of its own."""
        item.error = odd.get(item.key)
        if self._key is not None:
            item.lane = object()
        if item.error is not None or item.message.error is not None:
            return
        function = "key="
        try:
            if self._key is not None:
                item.lane = _hashable(self._key(item.message))
            if self._fingerprint is not None:
                function = "fingerprint="
                item.fingerprint = _number(self._fingerprint(item.message))
        except Exception as error:  # noqa: BLE001  # whatever the user's function raises
            item.error = _undecodable(item.message, function, error)

    async def _compare(self, items: Sequence[Item], in_hand: Iterable[Item], fingerprint: Fingerprint) -> None:
        """Make what came back with other content fail.

        After the one in hand that it is compared with: the record that is made last is the one that stays.
        """
        known = await self._progress.fingerprints([item.key for item in items if item.settled])
        last = {item.key: item for item in in_hand}
        for item in items:
            if item.settled:
                twin = last.get(item.key)
                before = known.get(item.key) if twin is None else twin.fingerprint
                if before is not None:
                    self._compare_one(item, before, fingerprint)
                    item.lane = None if twin is None else twin.lane
            if not item.settled:
                last[item.key] = item

    def _compare_one(self, item: Item, before: int, fingerprint: Fingerprint) -> None:
        try:
            item.fingerprint = _number(fingerprint(item.message))
        except Exception as error:  # noqa: BLE001  # likewise
            item.error, item.settled = _undecodable(item.message, "fingerprint=", error), False
        else:
            if item.fingerprint != before:
                item.error, item.settled = _changed(item), False


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"it returned {type(key).__name__}, not str")
    return key


def _hashable(lane: Hashable) -> Hashable:
    hash(lane)
    return lane


def _number(content: bytes) -> int:
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - FINGERPRINT_BITS)


def _undecodable(message: Message, function: str, error: Exception) -> UndecodableMessage:
    """What data that cannot be decoded raises by itself is the error; it says more."""
    if isinstance(error, UndecodableMessage):
        return error
    failed = UndecodableMessage(f"{function} failed for message {quoted(message.id)}: {describe(error)}")
    failed.__cause__ = error
    return failed


def _changed(item: Item) -> ContentChanged:
    return ContentChanged(
        f"message {quoted(item.message.id)} came back with other content than the one that was settled "
        f"under its dedupe key {quoted(item.key)}; if that is right, dedupe_key= has to tell the two apart"
    )
