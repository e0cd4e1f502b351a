"""List, retry, drop and export dead letters.

`DeadLetters` is the public interface: each call opens the session and waits until the running poll ends.
`SessionDeadLetters` works on the dead letters of an open session.
"""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from push_to_poll_client._exceptions import DecodeError
from push_to_poll_client._json import decode
from push_to_poll_client._options import SessionPart
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import Feed
from push_to_poll_client._retry import Retry, StopSignal, make_dead_letter
from push_to_poll_client._types import DeadLetter, Message, Record, Settlement, UnreadableMessage
from push_to_poll_client._validation import describe, quoted


@dataclass(kw_only=True, eq=False, repr=False)
class SessionDeadLetters(SessionPart):
    feed: Feed
    progress: Progress
    retry: Retry

    async def settle_marked(self, stop: StopSignal) -> bool:
        """Retry or drop the marked dead letters; return True if none is left."""
        last: DeadLetter | None = None
        while (
            page := await self.session.dead_letters(after=last, retry_requested=True)
            if self.session.dead_letter_count
            else ()
        ):
            for last in page:
                if stop.requested:
                    return False
                await (self.drop(last) if last.drop_requested else self.try_again(last))
        return True

    async def require(self, key: str) -> DeadLetter:
        """Return the dead letter with this key, or raise a `LookupError`."""
        dead_letter = await self.session.dead_letter(key)
        if dead_letter is None:
            raise LookupError(
                f"found no dead letter with the key {quoted(key)}; dead_letters.list() shows the keys"
            )
        return dead_letter

    async def try_again(self, dead_letter: DeadLetter) -> bool:
        """Retry a dead letter once; return True if it was processed."""
        # If the store fails, the outcome is saved by the next commit.
        progress, fingerprint = self.progress, await self._fingerprint(dead_letter)
        failure = await self.retry.retry_dead_letter(dead_letter, self._restore(dead_letter))
        if failure is None:
            progress.pending.append(Record(dead_letter.dedupe_key, fingerprint=fingerprint))
        else:
            first, now = dead_letter.first_failed, progress.time_of_day.now()
            progress.dead_letters.append(make_dead_letter(failure, dead_letter.raw, first=first, now=now))
        await progress.flush()
        return failure is None

    async def drop(self, dead_letter: DeadLetter) -> None:
        """Remove a dead letter and record its message as skipped. If the store fails, the next commit does it."""
        record = Record(dead_letter.dedupe_key, Settlement.SKIPPED, await self._fingerprint(dead_letter))
        self.progress.pending.append(record)
        await self.progress.flush()

    async def _fingerprint(self, dead_letter: DeadLetter) -> int | None:
        return (await self.progress.fingerprints([dead_letter.dedupe_key])).get(dead_letter.dedupe_key)

    def _restore(self, dead_letter: DeadLetter) -> Message:
        """Return the message, an unreadable one if the feed cannot restore it."""
        restore: Callable[[DeadLetter], Message] = getattr(self.feed, "restore", restore_from_json)
        try:
            message = restore(dead_letter)
            if not isinstance(message, Message):
                raise TypeError(f"restore() must return a Message, got {type(message).__name__}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  # the user's feed can raise anything
            unreadable = DecodeError(f"dead letter {quoted(dead_letter.id)} cannot be restored: {describe(error)}")
            unreadable.__cause__ = error
            return UnreadableMessage(dead_letter.id, unreadable, raw=dead_letter.raw)
        return message


def restore_from_json(dead_letter: DeadLetter) -> Message:
    """Return the message of a dead letter, for a feed without `restore`."""
    return Message(dead_letter.id, decode(dead_letter.raw), dedupe_key=dead_letter.dedupe_key)


def as_json(dead_letter: DeadLetter) -> bytes:
    """Return a dead letter as one line of JSON; `raw` that is not UTF-8 becomes `raw_base64`."""
    fields = msgspec.structs.asdict(dead_letter)
    raw = fields.pop("raw")
    try:
        fields["raw"] = raw.decode()
    except UnicodeDecodeError:
        fields["raw_base64"] = raw
    for name, value in fields.items():
        if isinstance(value, str):  # JSON can contain half a surrogate pair, UTF-8 cannot
            fields[name] = value.encode("utf-8", "backslashreplace").decode()
    return msgspec.json.encode(fields)


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RetryResult:
    """Result of a retry of dead letters.

    Attributes:
        processed: Number of messages that were processed; they are no longer dead letters.
        failed: Number of messages that failed again and stay dead letters, with the new error, attempts and time.
    """

    processed: int
    failed: int


class DeadLetters(AsyncIterable[DeadLetter]):
    """The dead letters of a consumer. Usable while the consumer runs.

        async for dead_letter in consumer.dead_letters:      # all of them, ordered by key
            print(dead_letter.dedupe_key, dead_letter.error)

    Get it from `Consumer.dead_letters`. Each call claims the consumer's name, unless this consumer already has it,
    and waits until the running poll ends. A loop reads one page per call, so polls can run meanwhile, and the body
    of the loop may call `retry` or `drop`. Dead letters that are added or removed during the loop may or may not
    appear.

    Each method raises `StoreBusy` if the name has another owner, `StoreError` if the store failed, and
    `RuntimeError` if it is called from the handler of this consumer.
    """

    def __init__(
        self,
        alone: Callable[[], AbstractAsyncContextManager[SessionDeadLetters]],
        claimed: AbstractAsyncContextManager[object],
    ) -> None:
        self._exclusive = alone
        self._claimed = claimed

    async def list(self, *, after: DeadLetter | None = None) -> Sequence[DeadLetter]:
        """Return one page of dead letters, ordered by key.

        A page has at most 100 dead letters and 16 MiB. To get all, use `async for`; or call this method with the
        last one of each page until a page is empty.

        Args:
            after: The last dead letter of the previous page; `None` for the first page.
        """
        async with self._exclusive() as dead_letters:
            return await dead_letters.session.dead_letters(after=after)

    async def get(self, key: str) -> DeadLetter:
        """Return the dead letter with this dedupe key.

        Raises:
            LookupError: No dead letter has this key.
        """
        async with self._exclusive() as dead_letters:
            return await dead_letters.require(key)

    async def retry(self, *keys: str) -> RetryResult:
        """Retry dead letters, once each, whatever the consumer's `retry` says.

        With a transactional store, each is processed together with its effects (G8).

        Args:
            keys: Dedupe keys of the dead letters; without keys, all of them.

        Raises:
            LookupError: A key has no dead letter. Those before it were retried.
        """
        async with self._claimed:
            # The keys of now; a poll or another call may remove some of them meanwhile.
            chosen = keys or [dead_letter.dedupe_key async for dead_letter in self]
            retry = SessionDeadLetters.try_again
            results = [await self._apply(key, retry, must_exist=bool(keys)) for key in chosen]
        return RetryResult(results.count(True), results.count(False))

    async def drop(self, *keys: str) -> int:
        """Delete dead letters for good; their messages count as skipped.

        Args:
            keys: Dedupe keys of the dead letters, at least one.

        Returns:
            The number of deleted dead letters.

        Raises:
            TypeError: No key was given.
            LookupError: A key has no dead letter. Those before it were deleted.
        """
        if not keys:
            raise TypeError("drop() needs at least one key")
        async with self._claimed:
            for key in keys:
                await self._apply(key, SessionDeadLetters.drop)
        return len(keys)

    def export(self) -> AsyncIterator[bytes]:
        """Iterate over all dead letters as JSON, one line each without line end.

        The lines have the fields of `DeadLetter`, with `raw` as text if it is UTF-8, otherwise as `raw_base64`.
        """
        return _Iterator(self, as_json)

    def __aiter__(self) -> AsyncIterator[DeadLetter]:
        """Iterate over all dead letters."""
        return _Iterator(self, lambda dead_letter: dead_letter)

    async def _apply(
        self,
        key: str,
        function: Callable[[SessionDeadLetters, DeadLetter], Awaitable[Result]],
        *,
        must_exist: bool = True,
    ) -> Result | None:
        """Apply the function to one dead letter; polls can run between two calls."""
        async with self._exclusive() as dead_letters:
            await dead_letters.progress.flush()  # a retry whose commit failed may have processed it already
            find = dead_letters.require if must_exist else dead_letters.session.dead_letter
            dead_letter = await find(key)
            return None if dead_letter is None else await function(dead_letters, dead_letter)


class _Iterator(AsyncIterator[Result]):
    def __init__(self, dead_letters: DeadLetters, convert: Callable[[DeadLetter], Result]) -> None:
        self._dead_letters = dead_letters
        self._convert = convert
        self._page: Iterator[DeadLetter] = iter(())
        self._last: DeadLetter | None = None

    async def __anext__(self) -> Result:
        dead_letter = next(self._page, None)
        if dead_letter is None:
            self._page = iter(await self._dead_letters.list(after=self._last))
            dead_letter = next(self._page, None)
        if dead_letter is None:
            raise StopAsyncIteration
        self._last = dead_letter
        return self._convert(dead_letter)
