"""One entry of a page, as a message."""

from typing import Any

import msgspec

from push_to_poll_client._types import Cursor, Message

__all__ = ["Entry"]


class Entry(Message):
    """A message of a `PagedFeed`; its `data` is the entry, read as JSON.

    Args:
        id: As for any message.
        data: As for any message.
        key: As for any message.
        cursor: As for any message.
        raw: The entry as it came.
        group: The name of its list, on a page with several; else "".
        type: What happened, as declared; "" when the entry does not say.
        time: When, as the feed wrote it; `None` when it did not.
        deleted: The entry says that something is gone.
    """

    __slots__ = ("_deleted", "_group", "_raw", "_time", "_type")

    def __init__(
        self,
        id: str,
        data: Any,
        *,
        key: str,
        raw: bytes | msgspec.Raw,
        group: str = "",
        type: str = "",
        time: Any = None,
        deleted: bool = False,
        cursor: Cursor | None = None,
    ) -> None:
        super().__init__(id, data, key=key, cursor=cursor)
        self._raw = raw
        self._group = group
        self._type = type
        self._time = time
        self._deleted = deleted

    @property
    def type(self) -> str:
        """What happened, as declared; "" when the entry does not say."""
        return self._type

    @property
    def time(self) -> Any:
        """When it happened, as the feed wrote it; `None` when it did not. Says nothing about order."""
        return self._time

    @property
    def deleted(self) -> bool:
        """Whether the entry says that something is gone."""
        return self._deleted

    @property
    def raw(self) -> bytes:
        """The entry as it came; of a page with several lists in an object, under the name of its list."""
        raw = bytes(self._raw)
        return b"{%b:%b}" % (msgspec.json.encode(self._group), raw) if self._group else raw
