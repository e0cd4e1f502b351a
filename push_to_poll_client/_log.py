"""Name the consumer in each log line of the library.

A consumer sets its name while it is at work. Tasks and worker threads inherit it, so a feed, a store or a listener
logs under the name of the consumer that uses it, and does not have to know it.
"""

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

from push_to_poll_client._validation import one_line

__all__ = ["ConsumerLog", "log_as"]

_current_consumer: ContextVar[str | None] = ContextVar("push_to_poll_client_consumer", default=None)

MAX_PREFIX: Final = 60
"""Characters of a consumer's name in front of a line. Without `name=` it is the feed's URL, which may be long."""


@contextmanager
def log_as(name: str) -> Iterator[None]:
    """Name a consumer in the lines that are logged in the block, and by the tasks and threads that it starts."""
    token = _current_consumer.set(name)
    try:
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
        """Log a line; the arguments are those of `logging.Logger.log`."""
        if not self.isEnabledFor(level):
            return
        name = _current_consumer.get()
        if name is not None:
            text = str(msg) if args else str(msg).replace("%", "%%")  # without arguments nothing was formatted
            msg, args = f"%s: {text}", (_shortened(name), *args)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the line is that of the caller
        super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the consumer's full name to the record, beside what the caller adds."""
        kwargs["extra"] = {"consumer": _current_consumer.get(), **(kwargs.get("extra") or {})}
        return msg, kwargs


def _shortened(name: str) -> str:
    """Shorten a long name in its middle: URLs differ at their ends, and begin with the host."""
    half = MAX_PREFIX // 2
    return one_line(name if len(name) <= MAX_PREFIX else f"{name[:half]}…{name[1 - half :]}")
