"""Put the consumer's name into log lines, and bound tracebacks.

A consumer sets its name while it works. Tasks and worker threads inherit it, so a feed, a store or a listener logs
under the name of the consumer that uses it.
"""

import logging
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, TypeAlias

from push_to_poll_client._secrets import Secrets, hidden
from push_to_poll_client._validation import one_line

_current_consumer: ContextVar[str | None] = ContextVar("push_to_poll_client_consumer", default=None)

# Characters of a consumer's name in a line. Without `name=` it is the feed's URL, which may be long.
MAX_PREFIX: Final = 60


@contextmanager
def log_as(name: str, hide: Iterable[Secrets] = ()) -> Iterator[None]:
    """Log as this consumer in the block and its tasks and threads, with the secrets `hide` masked."""
    token = _current_consumer.set(name)
    try:
        with hidden(*hide):
            yield
    finally:
        # A coroutine can be destroyed after its event loop has ended, in another context.
        with suppress(ValueError):
            _current_consumer.reset(token)


class ConsumerLog(logging.LoggerAdapter[logging.Logger]):
    """A logger that adds the consumer's name to each line."""

    # Each record has it as `consumer`. Lines of no consumer, or of several (such as a webhook receiver's), have
    # None there, so that a format with `%(consumer)s` works for all lines.

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        name, exc_info = _current_consumer.get(), kwargs.get("exc_info")
        if name is not None:
            # The name is an argument and not part of the text, so that tools group lines across consumers.
            text = str(msg) if args else str(msg).replace("%", "%%")  # without arguments logging does not format
            msg, args = f"%s: {text}", (_shortened(name), *args)
        if isinstance(exc_info, BaseException):
            exc_info = type(exc_info), exc_info, exc_info.__traceback__
        elif exc_info and not isinstance(exc_info, tuple):  # True, as `exception()` passes
            exc_info = sys.exc_info()
        file, line, function, _ = self.logger.findCaller(stacklevel=kwargs.get("stacklevel", 1) + 1)
        extra = {"consumer": name, **(kwargs.get("extra") or {})}
        record = self.logger.makeRecord(self.logger.name, level, file, line, msg, args, exc_info, function, extra)
        # A `logging.Formatter` shows this text: bounded, and safe for a terminal.
        if exc_info and exc_info[1] is not None:
            record.exc_text = traceback_text(exc_info)
        self.logger.handle(record)


def _shortened(name: str) -> str:
    """Cut the middle out of a long name: URLs differ at their ends."""
    half = MAX_PREFIX // 2
    return one_line(name if len(name) <= MAX_PREFIX else f"{name[:half]}…{name[1 - half :]}")


ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]

# Characters of a traceback in the log; of a longer one, the beginning and the end are kept.
MAX_TRACEBACK_TEXT: Final = 16_384


def traceback_text(error: ExcInfo) -> str:
    """Format an error with its traceback, shortened and masked."""
    # Line by line: the text of a handler's error can contain the content of a message.
    lines = "".join(traceback.format_exception(*error)).splitlines()
    text = "\n".join(map(one_line, lines))
    half = MAX_TRACEBACK_TEXT // 2
    return text if len(text) <= MAX_TRACEBACK_TEXT else f"{text[:half]}\n…\n{text[-half:]}"
