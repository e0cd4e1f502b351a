"""List, retry and drop dead letters, and write them as JSON.

`SessionDeadLetters` works on the dead letters of an open session; marked ones are retried by the next run.
`DeadLetters` is what the user of a consumer sees: each call opens the session and waits for the running poll.
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
    """The dead letters of one session.

    Attributes:
        feed: Makes messages of dead letters, if it has `restore`.
        progress: Commits the outcome of a retry.
        retry: Calls the handler.
    """

    feed: Feed
    progress: Progress
    retry: Retry

    async def retry_marked(self, stop: StopSignal) -> bool:
        """Retry the dead letters marked for this run, until a stop is requested; return whether all were.

        Raises:
            StoreError: The store failed.
        """
        last: DeadLetter | None = None
        while (
            page := await self.session.dead_letters(after=last, retry_requested=True)
            if self.session.dead_letter_count
            else ()
        ):
            for last in page:
                if stop.requested:
                    return False
                await self.try_again(last)
        return True

    async def require(self, key: str) -> DeadLetter:
        """Return the dead letter with this dedupe key.

        Raises:
            LookupError: There is none.
            StoreError: The store failed.
        """
        dead_letter = await self.session.dead_letter(key)
        if dead_letter is None:
            raise LookupError(f"there is no dead letter with the key {quoted(key)}")
        return dead_letter

    async def try_again(self, dead_letter: DeadLetter) -> bool:
        """Try a dead letter once; return whether it is processed now.

        Raises:
            StoreError: The store failed; the outcome is committed with the next commit.
        """
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
        """Remove a dead letter; its message counts as skipped.

        Raises:
            StoreError: The store failed; the next commit removes it.
        """
        record = Record(dead_letter.dedupe_key, Settlement.SKIPPED, await self._fingerprint(dead_letter))
        self.progress.pending.append(record)
        await self.progress.flush()

    async def _fingerprint(self, dead_letter: DeadLetter) -> int | None:
        """Return the fingerprint of the content that was given up on, for the new record."""
        return (await self.progress.fingerprints([dead_letter.dedupe_key])).get(dead_letter.dedupe_key)

    def _restore(self, dead_letter: DeadLetter) -> Message:
        """Return the message of a dead letter, an unreadable one if the feed cannot make it."""
        restore: Callable[[DeadLetter], Message] = getattr(self.feed, "restore", restore_from_json)
        try:
            message = restore(dead_letter)
            if not isinstance(message, Message):
                raise TypeError(f"restore() returned {type(message).__name__}, not a Message")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  # whatever the user's feed raises
            unreadable = DecodeError(f"dead letter {quoted(dead_letter.id)} cannot be restored: {describe(error)}")
            unreadable.__cause__ = error
            return UnreadableMessage(dead_letter.id, unreadable, raw=dead_letter.raw)
        return message


def restore_from_json(dead_letter: DeadLetter) -> Message:
    """Return the message of a dead letter of a feed without `restore`.

    Raises:
        ValueError: The bytes are not JSON.
        RecursionError: A value is nested too deep.
    """
    return Message(dead_letter.id, decode(dead_letter.raw), dedupe_key=dead_letter.dedupe_key)


def as_json(dead_letter: DeadLetter) -> bytes:
    """Return a dead letter as a line of JSON: its fields, with `raw` as text, or as `raw_base64` if it is none."""
    fields = msgspec.structs.asdict(dead_letter)
    raw = fields.pop("raw")
    try:
        fields["raw"] = raw.decode()
    except UnicodeDecodeError:
        fields["raw_base64"] = raw
    for name, value in fields.items():
        if isinstance(value, str):  # JSON can spell half a surrogate pair, UTF-8 cannot
            fields[name] = value.encode("utf-8", "backslashreplace").decode()
    return msgspec.json.encode(fields)


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RetryResult:
    """What came of trying dead letters again.

    Attributes:
        processed: How many were processed; they are no dead letters any more.
        failed: How many failed again; their error, attempts and time are the new ones.
    """

    processed: int
    failed: int


class DeadLetters(AsyncIterable[DeadLetter]):
    """The dead letters of a consumer, also while it runs.

        async for letter in consumer.dead_letters:      # all of them, in the order of their keys
            print(letter.dedupe_key, letter.error)

    Each call claims the consumer's name, unless it has it already, and waits for the poll that runs. A loop reads
    some at a time, in a call for each, so polls can run meanwhile, and the body may retry or drop. What is added
    or removed during the loop may be seen or not.

    Args:
        alone: Gives them while no poll runs.
        claimed: Keeps the name over several such calls.
    """

    def __init__(
        self,
        alone: Callable[[], AbstractAsyncContextManager[SessionDeadLetters]],
        claimed: AbstractAsyncContextManager[object],
    ) -> None:
        self._exclusive = alone
        self._claimed = claimed

    async def list(self, *, after: DeadLetter | None = None) -> Sequence[DeadLetter]:
        """Return one page, in the order of the keys: 100 at most, or fewer that have 16 MiB together.

        For all of them use `async for`, or call it again with the last one until the list is empty.

        Args:
            after: The last one of the page before; `None` means the first page.

        Raises:
            StoreBusy: Somebody else has the name.
            StoreError: The store failed.
        """
        async with self._exclusive() as dead_letters:
            return await dead_letters.session.dead_letters(after=after)

    async def get(self, key: str) -> DeadLetter:
        """One of them.

        Args:
            key: Its dedupe key.

        Raises:
            LookupError: There is none.
            StoreBusy: As for `list`.
            StoreError: As for `list`.
        """
        async with self._exclusive() as dead_letters:
            return await dead_letters.require(key)

    async def retry(self, *keys: str) -> RetryResult:
        """Try them again, once each, whatever `retry` says. One is processed together with its effects (G8).

        Args:
            keys: Their dedupe keys; none: all of them.

        Raises:
            LookupError: There is none of a key; those before it were tried.
            StoreBusy: As for `list`.
            StoreError: As for `list`.
            RuntimeError: Called while processing a message of this consumer.
        """
        async with self._claimed:
            # Those that are there now; a poll or another call may remove some meanwhile.
            chosen = keys or [dead_letter.dedupe_key async for dead_letter in self]
            retry = SessionDeadLetters.try_again
            results = [await self._apply(key, retry, must_exist=bool(keys)) for key in chosen]
        return RetryResult(results.count(True), results.count(False))

    async def drop(self, *keys: str) -> int:
        """Take them away for good; their messages count as skipped. How many there were.

        Args:
            keys: Their dedupe keys, at least one.

        Raises:
            TypeError: No key was given.
            LookupError: There is none of a key; those before it are gone.
            StoreBusy: As for `list`.
            StoreError: As for `list`.
        """
        if not keys:
            raise TypeError("drop() takes the keys of the dead letters that are to go")
        async with self._claimed:
            for key in keys:
                await self._apply(key, SessionDeadLetters.drop)
        return len(keys)

    def export(self) -> AsyncIterator[bytes]:
        """All of them, a line of JSON each, without line end. See `as_json`.

        Raises:
            StoreBusy: As for `list`.
            StoreError: As for `list`.
        """
        return _Iterator(self, as_json)

    def __aiter__(self) -> AsyncIterator[DeadLetter]:
        """Iterate over all of them; `async for` raises as `list` does."""
        return _Iterator(self, lambda dead_letter: dead_letter)

    async def _apply(
        self,
        key: str,
        function: Callable[[SessionDeadLetters, DeadLetter], Awaitable[Result]],
        *,
        must_exist: bool = True,
    ) -> Result | None:
        """Apply the function to one dead letter. Polls can run between two of them."""
        async with self._exclusive() as dead_letters:
            await dead_letters.progress.flush()  # a dead letter that was retried may be processed already
            find = dead_letters.require if must_exist else dead_letters.session.dead_letter
            dead_letter = await find(key)
            return None if dead_letter is None else await function(dead_letters, dead_letter)


class _Iterator(AsyncIterator[Result]):
    """All dead letters. Not a generator, which would have to be closed when it is not read to the end."""

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
