"""List, retry and drop dead letters, and write them as JSON."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from push_to_poll_client._exceptions import UndecodableMessage
from push_to_poll_client._json import decode
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import Feed, Session
from push_to_poll_client._retry import Retry, StopSignal, make_dead_letter
from push_to_poll_client._types import DeadLetter, Message, Record, RecordState
from push_to_poll_client._validation import describe, quoted

__all__ = [
    "DeadLetters",
    "Retried",
    "SessionDeadLetters",
    "as_json",
]


class SessionDeadLetters:
    """The dead letters of one session.

    Args:
        session: Keeps them.
        feed: Makes messages of them again.
        progress: Commits what comes of it.
        trials: Tries them.
    """

    def __init__(self, session: Session, feed: Feed, progress: Progress, trials: Retry) -> None:
        self.session = session
        self._restore: Callable[[DeadLetter], Message] = getattr(feed, "restore", restore_from_json)
        self._progress = progress
        self._retry = trials
        self._marked_retried = False

    async def retry_marked(self, stop: StopSignal) -> bool:
        """Try those again that were marked for this run, as long as nobody asks to stop. Whether all were.

        Raises:
            StoreError: The store failed.
        """
        last: DeadLetter | None = None
        while not self._marked_retried:
            page = await self.session.dead_letters(after=last, marked=True) if self.session.dead else ()
            for last in page:
                if stop.requested:
                    return False
                await self.retry(last)
            self._marked_retried = not page
        return True

    async def keys(self) -> Sequence[str]:
        """Those of all.

        Raises:
            StoreError: The store failed.
        """
        keys: list[str] = []
        last: DeadLetter | None = None
        while page := await self.session.dead_letters(after=last):
            keys.extend(letter.key for letter in page)
            last = page[-1]
        return keys

    async def retry(self, letter: DeadLetter) -> bool:
        """Try it once. Whether it is processed now.

        Raises:
            StoreError: The store failed; what came of it is committed with what is next.
        """
        fingerprint = await self._fingerprint(letter)
        failed = await self._try_once(letter)
        if failed is None:
            self._progress.pending.append(Record(letter.key, fingerprint=fingerprint))
        else:
            self._progress.dead_letters.append(failed)
        await self._progress.flush()
        return failed is None

    async def drop(self, letter: DeadLetter) -> None:
        """Take it away; its message counts as skipped.

        Raises:
            StoreError: The store failed; the next commit takes it away.
        """
        record = Record(letter.key, RecordState.SKIPPED, await self._fingerprint(letter))
        self._progress.pending.append(record)
        await self._progress.flush()

    async def _fingerprint(self, letter: DeadLetter) -> int | None:
        """Of the content that it was given up on with: the new record is to know it too."""
        return (await self._progress.fingerprints([letter.key])).get(letter.key)

    async def _try_once(self, letter: DeadLetter) -> DeadLetter | None:
        """Try it once; what it is then, if that failed."""
        now = self._progress.time_of_day.now
        try:
            message = _require_message(self._restore(letter))
        except Exception as error:  # noqa: BLE001  # whatever the user's feed raises
            return _failed_again(letter, _restore_error(letter, error), now(), tried=0)
        tried = 0 if message.error else 1
        failure = await self._retry.retry_dead_letter(message, attempt=letter.attempts + tried)
        return None if failure is None else _failed_again(letter, failure, now(), tried=tried)


def _require_message(message: object) -> Message:
    if not isinstance(message, Message):
        raise TypeError(f"restore() returned {type(message).__name__}, not a Message")
    return message


def _restore_error(letter: DeadLetter, error: Exception) -> UndecodableMessage:
    unreadable = UndecodableMessage(f"dead letter {quoted(letter.id)} cannot be restored: {describe(error)}")
    unreadable.__cause__ = error
    return unreadable


def _failed_again(letter: DeadLetter, error: Exception, now: float, *, tried: int) -> DeadLetter:
    return msgspec.structs.replace(
        make_dead_letter(letter.key, letter.id, letter.raw, error, now),
        attempts=letter.attempts + tried,
        first_failed=letter.first_failed,
    )


def restore_from_json(letter: DeadLetter) -> Message:
    """The message of a dead letter, for a feed that does not say how.

    Raises:
        ValueError: Its bytes are no JSON.
        RecursionError: Something in it is nested too deep.
    """
    return Message(letter.id, decode(letter.raw), key=letter.key)


def as_json(letter: DeadLetter) -> bytes:
    """A dead letter in JSON, in one line: its fields; `raw` as text, or as `raw_base64` if it is none."""
    fields = msgspec.structs.asdict(letter)
    raw = fields.pop("raw")
    try:
        fields["raw"] = raw.decode()
    except UnicodeDecodeError:
        fields["raw_base64"] = raw
    return msgspec.json.encode({name: _escape_surrogates(value) for name, value in fields.items()})


def _escape_surrogates(value: Any) -> Any:
    """JSON can spell half a surrogate pair, UTF-8 cannot."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Retried:
    """What came of trying dead letters again.

    Attributes:
        processed: How many were processed; they are no dead letters any more.
        failed: How many failed again; their error, attempts and time are the new ones.
    """

    processed: int
    failed: int


class DeadLetters:
    """The dead letters of a consumer, also while it runs.

    Each call claims the consumer's name, unless it has it already, and waits for the poll that runs.

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
        """Some of them, in the order of their keys: 100 at most, or fewer that have 16 MiB together.

        Args:
            after: The last one of the list before; `None`: from the first.

        Raises:
            StoreBusy: Somebody else has the name.
            StoreError: The store failed.
        """
        async with self._exclusive() as letters:
            return await letters.session.dead_letters(after=after)

    async def get(self, key: str) -> DeadLetter:
        """One of them.

        Args:
            key: Its dedupe key.

        Raises:
            LookupError: There is none.
            StoreBusy: As for `list`.
            StoreError: As for `list`.
        """
        async with self._exclusive() as letters:
            return await _require_dead_letter(letters, key)

    async def retry(self, *keys: str) -> Retried:
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
            results = (
                [await self._apply(key, SessionDeadLetters.retry) for key in keys]
                if keys
                else await self._retry_all()
            )
        return Retried(results.count(True), results.count(False))

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
        return _JSONLines(self)

    async def _retry_all(self) -> Sequence[bool]:
        """All that are there now; one may go meanwhile, by a poll or another call."""
        async with self._exclusive() as letters:
            keys = await letters.keys()
        results = []
        for key in keys:
            async with self._exclusive() as letters:
                letter = await letters.session.dead_letter(key)
                if letter is not None:
                    results.append(await letters.retry(letter))
        return results

    async def _apply(
        self, key: str, function: Callable[[SessionDeadLetters, DeadLetter], Awaitable[Result]]
    ) -> Result:
        """One at a time, so that polls are not kept waiting by all of them."""
        async with self._exclusive() as letters:
            return await function(letters, await _require_dead_letter(letters, key))


class _JSONLines(AsyncIterator[bytes]):
    """An export. No generator: one that nobody reads to its end would have to be closed."""

    def __init__(self, letters: DeadLetters) -> None:
        self._dead_letters = letters
        self._page: Iterator[DeadLetter] = iter(())
        self._last: DeadLetter | None = None

    async def __anext__(self) -> bytes:
        letter = next(self._page, None)
        if letter is None:
            self._page = iter(await self._dead_letters.list(after=self._last))
            letter = next(self._page, None)
        if letter is None:
            raise StopAsyncIteration
        self._last = letter
        return as_json(letter)


async def _require_dead_letter(letters: SessionDeadLetters, key: str) -> DeadLetter:
    letter = await letters.session.dead_letter(key)
    if letter is None:
        raise LookupError(f"there is no dead letter with the key {quoted(key)}")
    return letter
