"""WHAT WAS GIVEN UP ON, in one session: made messages again, tried once more, dropped, written as JSON."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from push_to_poll_client._exceptions import UndecodableMessage
from push_to_poll_client._json import decode
from push_to_poll_client._processing.progress import Progress
from push_to_poll_client._processing.trials import Stop, Trials, dead_letter
from push_to_poll_client._protocols import Feed, Session
from push_to_poll_client._text import describe, quoted
from push_to_poll_client._types import DeadLetter, Message, Record, RecordState

__all__ = ["Letters", "as_json"]


class Letters:
    """The dead letters of one session.

    Args:
        session: Keeps them.
        feed: Makes messages of them again.
        progress: Commits what comes of it.
        trials: Tries them.
    """

    def __init__(self, session: Session, feed: Feed, progress: Progress, trials: Trials) -> None:
        self.session = session
        self._restore: Callable[[DeadLetter], Message] = getattr(feed, "restore", restored)
        self._progress = progress
        self._trials = trials
        self._begun = False

    async def begin(self, stop: Stop) -> bool:
        """Try those again that were marked for this run, as long as nobody asks to stop. Whether all were.

        Raises:
            StoreError: The store failed.
        """
        last: DeadLetter | None = None
        while not self._begun:
            page = await self.session.dead_letters(after=last, marked=True) if self.session.dead else ()
            for last in page:
                if stop.asked:
                    return False
                await self.retry(last)
            self._begun = not page
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
        failed = await self._attempt(letter)
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

    async def _attempt(self, letter: DeadLetter) -> DeadLetter | None:
        """Try it once; what it is then, if that failed."""
        now = self._progress.time_of_day.now
        try:
            message = _checked(self._restore(letter))
        except Exception as error:  # noqa: BLE001  # whatever the user's feed raises
            return _failed_again(letter, _unrestored(letter, error), now(), tried=0)
        tried = 0 if message.error else 1
        failure = await self._trials.once_more(message, attempt=letter.attempts + tried)
        return None if failure is None else _failed_again(letter, failure, now(), tried=tried)


def _checked(message: object) -> Message:
    if not isinstance(message, Message):
        raise TypeError(f"restore() returned {type(message).__name__}, not a Message")
    return message


def _unrestored(letter: DeadLetter, error: Exception) -> UndecodableMessage:
    unreadable = UndecodableMessage(f"dead letter {quoted(letter.id)} cannot be restored: {describe(error)}")
    unreadable.__cause__ = error
    return unreadable


def _failed_again(letter: DeadLetter, error: Exception, now: float, *, tried: int) -> DeadLetter:
    return msgspec.structs.replace(
        dead_letter(letter.key, letter.id, letter.raw, error, now),
        attempts=letter.attempts + tried,
        first_failed=letter.first_failed,
    )


def restored(letter: DeadLetter) -> Message:
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
    return msgspec.json.encode({name: _encodable(value) for name, value in fields.items()})


def _encodable(value: Any) -> Any:
    """JSON can spell half a surrogate pair, UTF-8 cannot."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
