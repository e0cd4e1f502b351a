"""WHAT WAS GIVEN UP ON, as a consumer's user sees it: dead letters are listed, tried again, and dropped."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from push_to_poll_client._processing.letters import Letters, as_json
from push_to_poll_client._text import quoted
from push_to_poll_client._types import DeadLetter

__all__ = ["DeadLetters", "Retried"]

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
        alone: Callable[[], AbstractAsyncContextManager[Letters]],
        claimed: AbstractAsyncContextManager[object],
    ) -> None:
        self._alone = alone
        self._claimed = claimed

    async def list(self, *, after: DeadLetter | None = None) -> Sequence[DeadLetter]:
        """Some of them, in the order of their keys: 100 at most, or fewer that have 16 MiB together.

        Args:
            after: The last one of the list before; `None`: from the first.

        Raises:
            StoreBusy: Somebody else has the name.
            StoreError: The store failed.
        """
        async with self._alone() as letters:
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
        async with self._alone() as letters:
            return await _found(letters, key)

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
            results = [await self._each(key, Letters.retry) for key in keys] if keys else await self._retry_all()
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
                await self._each(key, Letters.drop)
        return len(keys)

    def export(self) -> AsyncIterator[bytes]:
        """All of them, a line of JSON each, without line end. See `as_json`.

        Raises:
            StoreBusy: As for `list`.
            StoreError: As for `list`.
        """
        return _Lines(self)

    async def _retry_all(self) -> Sequence[bool]:
        """All that are there now; one may go meanwhile, by a poll or another call."""
        async with self._alone() as letters:
            keys = await letters.keys()
        results = []
        for key in keys:
            async with self._alone() as letters:
                letter = await letters.session.dead_letter(key)
                if letter is not None:
                    results.append(await letters.retry(letter))
        return results

    async def _each(self, key: str, function: Callable[[Letters, DeadLetter], Awaitable[Result]]) -> Result:
        """One at a time, so that polls are not kept waiting by all of them."""
        async with self._alone() as letters:
            return await function(letters, await _found(letters, key))


class _Lines(AsyncIterator[bytes]):
    """An export. No generator: one that nobody reads to its end would have to be closed."""

    def __init__(self, letters: DeadLetters) -> None:
        self._letters = letters
        self._some: Iterator[DeadLetter] = iter(())
        self._last: DeadLetter | None = None

    async def __anext__(self) -> bytes:
        letter = next(self._some, None)
        if letter is None:
            self._some = iter(await self._letters.list(after=self._last))
            letter = next(self._some, None)
        if letter is None:
            raise StopAsyncIteration
        self._last = letter
        return as_json(letter)


async def _found(letters: Letters, key: str) -> DeadLetter:
    letter = await letters.session.dead_letter(key)
    if letter is None:
        raise LookupError(f"there is no dead letter with the key {quoted(key)}")
    return letter
