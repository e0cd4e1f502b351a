"""Name the consumer in each log line of the library, and bound its tracebacks.

A consumer sets its name while it is at work. Tasks and worker threads inherit it, so a feed, a store or a listener
logs under the name of the consumer that uses it, and does not have to know it.
"""

import logging
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, TypeAlias

from push_to_poll_client._secrets import Secrets, hidden
from push_to_poll_client._validation import one_line

_current_consumer: ContextVar[str | None] = ContextVar("push_to_poll_client_consumer", default=None)

MAX_PREFIX: Final = 60
"""Characters of a consumer's name in front of a line. Without `name=` it is the feed's URL, which may be long."""


@contextmanager
def log_as(name: str, hide: Iterable[Secrets] = ()) -> Iterator[None]:
    """Name a consumer in the lines that are logged in the block, and by the tasks and threads that it starts.

    Args:
        name: The consumer's name.
        hide: What must not be shown in these lines, nor in errors and the status.
    """
    token = _current_consumer.set(name)
    try:
        with hidden(*hide):
            yield
    finally:
        # A coroutine may be destroyed long after its event loop has ended, in another context.
        with suppress(ValueError):
            _current_consumer.reset(token)


class ConsumerLog(logging.LoggerAdapter[logging.Logger]):
    """A logger that puts the consumer's name in front of each line, and into each record as `consumer`.

    A line that is of no consumer, or of several, as of a webhook's receiver, has no name; its `consumer` is None,
    so that a format with `%(consumer)s` can be used for all lines. The name is an argument of the line and not
    part of its text, so that tools which group lines by their text group them across consumers.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a line, with the arguments of `logging.Logger.log`."""
        if not self.isEnabledFor(level):
            return
        name, exc_info = _current_consumer.get(), kwargs.get("exc_info")
        if name is not None:
            text = str(msg) if args else str(msg).replace("%", "%%")  # without arguments nothing was formatted
            msg, args = f"%s: {text}", (_shortened(name), *args)
        if isinstance(exc_info, BaseException):
            exc_info = type(exc_info), exc_info, exc_info.__traceback__
        file, line, function, _ = self.logger.findCaller(stacklevel=kwargs.get("stacklevel", 1) + 1)
        extra = {"consumer": name, **(kwargs.get("extra") or {})}
        record = self.logger.makeRecord(self.logger.name, level, file, line, msg, args, exc_info, function, extra)
        if exc_info:  # what a `logging.Formatter` shows is bounded, and does nothing to a terminal
            record.exc_text = traceback_text(exc_info)
        self.logger.handle(record)


def _shortened(name: str) -> str:
    """Shorten a long name in its middle: URLs differ at their ends, and begin with the host."""
    half = MAX_PREFIX // 2
    return one_line(name if len(name) <= MAX_PREFIX else f"{name[:half]}…{name[1 - half :]}")


ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]

MAX_TRACEBACK_TEXT: Final = 16_384
"""Characters of a traceback in the log: of a longer one the beginning and the end."""


def traceback_text(error: ExcInfo) -> str:
    """Format an error with its traceback; a message's content can be in the text of a handler's error."""
    lines = "".join(traceback.format_exception(*error)).splitlines()
    text = "\n".join(map(one_line, lines))
    half = MAX_TRACEBACK_TEXT // 2
    return text if len(text) <= MAX_TRACEBACK_TEXT else f"{text[:half]}\n…\n{text[-half:]}"
