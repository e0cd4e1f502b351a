"""Settle a page: drop duplicates, process what is new, and record the progress.

The user's functions of a message are called here and nowhere else. A message for which one of them fails is a
message that fails (G9), and does not come to the handler.

What is recorded was processed, and what the cursor has passed is recorded (G5, G6). A commit covers whole pages,
or what was done in `flush_interval` (G7), and none is under way while a message waits to be tried again.
"""

import hashlib
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from operator import attrgetter
from types import MappingProxyType
from typing import Final, TypeAlias

import anyio
from anyio.abc import TaskGroup

from push_to_poll_client._exceptions import ContentChanged, UndecodableMessage
from push_to_poll_client._options import DedupeKey, Fingerprint, Handler, OrderingKey
from push_to_poll_client._overlap import Overlap
from push_to_poll_client._progress import Progress
from push_to_poll_client._retry import Postponed, Retry, StopSignal
from push_to_poll_client._status import ConsumerStats
from push_to_poll_client._types import Clock, Message, Page, Record
from push_to_poll_client._validation import describe, quoted
from push_to_poll_client._work_queue import WorkItem, WorkQueue
from push_to_poll_client._workers import Workers

__all__ = [
    "Dedupe",
    "DedupeErrors",
    "Processor",
]


_key_of = attrgetter("key")

DedupeErrors: TypeAlias = Mapping[str, UndecodableMessage]
"""By dedupe key, why a message cannot be told from others."""

NO_DEDUPE_ERRORS: Final[DedupeErrors] = MappingProxyType({})

FINGERPRINT_BITS: Final = 63
"""A changed message goes unnoticed once in 9·10^18, and a store keeps 8 bytes of it."""


class Dedupe:
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
        key: OrderingKey | None,
        fingerprint: Fingerprint | None,
    ) -> None:
        self._progress = progress
        self._dedupe_key = dedupe_key
        self._key = key
        self._fingerprint = fingerprint

    def dedupe_keys(self, messages: Sequence[Message]) -> tuple[list[str], DedupeErrors]:
        """The dedupe keys, and for which of them the user's function failed.

        Such a message has a key of its own, which no other message gets from that function.
        """
        if self._dedupe_key is None:
            return list(map(_key_of, messages)), NO_DEDUPE_ERRORS
        keys, odd = list[str](), dict[str, UndecodableMessage]()
        for message in messages:
            try:
                keys.append(message.key if message.error else _require_str(self._dedupe_key(message)))
            except Exception as error:  # noqa: BLE001  # whatever the user's function raises
                keys.append(f"dedupe_key= failed: {message.key}")
                odd[keys[-1]] = _undecodable_error(message, "dedupe_key=", error)
        return keys, odd

    def records(self, messages: Sequence[Message]) -> list[Record]:
        """The records of messages that the handler is about to get."""
        keys, _ = self.dedupe_keys(messages)
        known = zip(keys, messages, strict=True)
        return [Record(key, fingerprint=self._fingerprint_of(message)) for key, message in known]

    def _fingerprint_of(self, message: Message) -> int | None:
        """What stands for its content; `None`: that is not looked at, or cannot be, as of a dead letter."""
        if self._fingerprint is None:
            return None
        try:
            return _hash_content(self._fingerprint(message))
        except Exception:  # noqa: BLE001  # likewise
            return None

    async def make_items(
        self,
        messages: Sequence[Message],
        keys: Sequence[str],
        new: Iterable[bool],
        odd: DedupeErrors,
        *,
        in_hand: Iterable[WorkItem],
        read_at: float,
        arrived: float,
    ) -> list[WorkItem]:
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
            WorkItem(key, message, message.cursor, read_at, arrived, settled=not is_new)
            for key, message, is_new in zip(keys, messages, new, strict=True)
        ]
        if self._key is not None or self._fingerprint is not None or odd:
            for item in items:
                if not item.settled:
                    self._prepare(item, odd)
        if self._fingerprint is not None and any(item.settled for item in items):
            await self._compare_fingerprints(items, in_hand, self._fingerprint)
        return items

    def _prepare(self, item: WorkItem, odd: DedupeErrors) -> None:
        """Its lane and its fingerprint. One of which they cannot be said has a lane of its own."""
        item.error = odd.get(item.key)
        if self._key is not None:
            item.lane = object()
        if item.error is not None or item.message.error is not None:
            return
        function = "key="
        try:
            if self._key is not None:
                item.lane = _require_hashable(self._key(item.message))
            if self._fingerprint is not None:
                function = "fingerprint="
                item.fingerprint = _hash_content(self._fingerprint(item.message))
        except Exception as error:  # noqa: BLE001  # whatever the user's function raises
            item.error = _undecodable_error(item.message, function, error)

    async def _compare_fingerprints(
        self, items: Sequence[WorkItem], in_hand: Iterable[WorkItem], fingerprint: Fingerprint
    ) -> None:
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
                    self._compare_fingerprint(item, before, fingerprint)
                    item.lane = None if twin is None else twin.lane
            if not item.settled:
                last[item.key] = item

    def _compare_fingerprint(self, item: WorkItem, before: int, fingerprint: Fingerprint) -> None:
        try:
            item.fingerprint = _hash_content(fingerprint(item.message))
        except Exception as error:  # noqa: BLE001  # likewise
            item.error, item.settled = _undecodable_error(item.message, "fingerprint=", error), False
        else:
            if item.fingerprint != before:
                item.error, item.settled = _content_changed_error(item), False


def _require_str(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"it returned {type(key).__name__}, not str")
    return key


def _require_hashable(lane: Hashable) -> Hashable:
    hash(lane)
    return lane


def _hash_content(content: bytes) -> int:
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - FINGERPRINT_BITS)


def _undecodable_error(message: Message, function: str, error: Exception) -> UndecodableMessage:
    """What data that cannot be decoded raises by itself is the error; it says more."""
    if isinstance(error, UndecodableMessage):
        return error
    failed = UndecodableMessage(f"{function} failed for message {quoted(message.id)}: {describe(error)}")
    failed.__cause__ = error
    return failed


def _content_changed_error(item: WorkItem) -> ContentChanged:
    return ContentChanged(
        f"message {quoted(item.message.id)} came back with other content than the one that was settled "
        f"under its dedupe key {quoted(item.key)}; if that is right, dedupe_key= has to tell the two apart"
    )


class Processor:
    """Settles the pages of one session.

    Args:
        progress: Knows what was settled before, and commits what is settled.
        handler: Processes one message.
        intake: Knows what is new.
        trials: Settles a message that fails.
        workers: Settle what is not simply done one after the other.
        tally: Told of duplicates.
        plain: Messages are simply done one after the other.
        batch_wait: Seconds for which the first message of a batch may wait for the next page.
        clock: The event loop's.

    Attributes:
        hand: The scope of what is in hand, so that a stop can set it a deadline.
        postponed: Until when a message has to wait, with which the poll ended; `None`: it did not, so far.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        progress: Progress,
        handler: Handler,
        intake: Dedupe,
        trials: Retry,
        workers: Workers,
        tally: ConsumerStats,
        *,
        plain: bool,
        batch_wait: float,
        clock: Clock,
    ) -> None:
        self.in_flight_scope = anyio.CancelScope()
        self.postponed_until: float | None = None
        self._progress = progress
        self._handler = handler
        self._dedupe = intake
        self._retry = trials
        self._workers = workers
        self._stats = tally
        self._plain = plain
        self._batch_wait = batch_wait
        self._clock = clock
        self._work = WorkQueue()

    async def take_page(
        self,
        page: Page,
        *,
        read_at: float,
        stop: StopSignal | None = None,
        beside: TaskGroup | None = None,
        overlap: Overlap | None = None,
    ) -> bool:
        """Settle the messages of a page, and commit when it is complete.

        What is not committed then is, at the end of the poll (`Progress.finish`).

        Args:
            page: What a fetch returned.
            read_at: When it arrived, on the event loop's clock.
            stop: Looked at before each message. With it, a cancellation does not reach the message in hand; it
                ends by itself, or at the deadline of `in_flight_scope`.
            beside: Where the next page is on its way: the commit may go on there while the caller does, and what
                does not fill a batch may wait for it. `None`: it is not.
            overlap: What knows what of the page was read before; `None`: as a rule nothing was.

        Returns:
            Whether the page is settled, but for what waits for the next one.

        Raises:
            ProcessError: A message failed for good.
            StoreError: Progress could not be committed.
        """
        keys, odd = self._dedupe.dedupe_keys(page.messages)
        new = _new_flags(keys, await self._unsettled(keys))
        if self._plain and overlap is None and not self._progress.attempts and not odd:
            self._progress.read_at = read_at
            work = partial(self._process_in_order, zip(keys, page.messages, new, strict=False))
            complete = await self.run_shielded(work, stop)
            if complete:
                self._progress.advance(page.cursor, read_at)
        else:
            await self._enqueue_page(page, keys, new, odd, read_at, overlap)
            work = partial(self._work_off, fill=beside is not None and self._batch_wait > 0)
            complete = await self.run_shielded(work, stop)
        if complete:  # else it was stopped, postponed, or overran the deadline of `in_flight_scope`
            await self._commit(beside, keys)
        return complete

    async def finish_partial_batch(self, stop: StopSignal | None) -> bool:
        """Settle what waits for the next page, which does not come in time.

        Args:
            stop: As for `take_page`.

        Returns:
            Whether it is settled.

        Raises:
            ProcessError: As for `take_page`.
            StoreError: As for `take_page`.
        """
        return await self.run_shielded(partial(self._work_off, fill=False), stop)

    async def run_shielded(self, work: Callable[[StopSignal], Awaitable[bool]], stop: StopSignal | None) -> bool:
        """Do what must not be cut short by a cancellation.

        Args:
            work: Returns whether it is complete.
            stop: As for `take_page`.

        Returns:
            Whether it is.
        """
        complete = False
        try:
            with anyio.CancelScope(shield=stop is not None) as self.in_flight_scope:
                complete = await work(stop or StopSignal())
        except Postponed as postponed:
            self.postponed_until = postponed.until
        return complete

    def begin(self) -> None:
        """A poll begins. What the last one had in hand is fetched again."""
        self._work, self.postponed_until = WorkQueue(), None

    @property
    def batch_deadline(self) -> float | None:
        """When what waits to fill a batch is not to wait any longer; `None`: nothing waits."""
        since = self._work.waiting_since
        return None if since is None else since + self._batch_wait

    async def _unsettled(self, keys: list[str]) -> set[str]:
        unsettled = await self._progress.unsettled(keys)
        if self._work.left:
            unsettled -= {item.key for item in self._work.unsettled}
        return unsettled

    async def _commit(self, beside: TaskGroup | None, keys: list[str]) -> None:
        if beside is None:
            await self._progress.flush()
        else:
            await self._progress.commit_in_background(beside, keys)

    async def _process_in_order(self, messages: Iterable[tuple[str, Message, bool]], stop: StopSignal) -> bool:
        handler, clock, progress = self._handler, self._clock, self._progress  # this is what each message pays for
        record = progress.pending.append
        for key, message, is_new in messages:
            if stop.requested:
                return False
            if is_new:
                if message.error is not None:
                    record(Record(key, await self._retry.handle_failure(key, message, message.error, stop)))
                else:
                    try:
                        await handler(message)
                    except BaseException as error:  # noqa: BLE001  # what it means is decided there
                        record(Record(key, await self._retry.handle_failure(key, message, error, stop)))
                    else:
                        record(Record(key))
            else:
                self._stats.counts["duplicates"] += 1
            if (cursor := message.cursor) is not None:
                progress.cursor = cursor
            if clock() >= progress.due:
                await progress.flush()
        return True

    async def _enqueue_page(  # noqa: PLR0917  # each is of another type
        self,
        page: Page,
        keys: Sequence[str],
        new: Iterable[bool],
        odd: DedupeErrors,
        read_at: float,
        overlap: Overlap | None,
    ) -> None:
        in_hand = self._work.unsettled
        items = await self._dedupe.make_items(
            page.messages, keys, new, odd, in_hand=in_hand, read_at=read_at, arrived=self._clock()
        )
        cursor = page.cursor if overlap is None else overlap.inspect_page(page, items)
        self._stats.counts["duplicates"] += sum(item.settled for item in items)
        self._work.add(items, read_at, cursor=cursor)
        self._progress.advance(self._work.cursor, self._work.read_at)

    async def _work_off(self, stop: StopSignal, *, fill: bool) -> bool:
        await self._workers.work_off(self._work, stop, fill=fill)
        return not stop.requested if fill else not any(self._work.unsettled)


def _new_flags(keys: Sequence[str], unsettled: set[str]) -> Iterable[bool]:
    """For each key whether its message is to be settled: not if it was before, or earlier in this page."""
    return repeat(True, len(keys)) if len(unsettled) == len(keys) else _flag_first_occurrences(keys, unsettled)  # noqa: FBT003


def _flag_first_occurrences(keys: Sequence[str], unsettled: set[str]) -> Iterable[bool]:
    new = []
    for key in keys:
        new.append(key in unsettled)
        unsettled.discard(key)
    return new
