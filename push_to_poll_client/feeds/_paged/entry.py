"""One entry of a page, as a message."""

from typing import Any

from push_to_poll_client._types import Cursor, Message
from push_to_poll_client.feeds._paged.lists import Part

__all__ = ["Entry"]


class Entry(Message):
    """A message of a `PagedFeed`; its `data` is the entry, read as JSON.

    It keeps the text of its page alive: do not collect entries, take from them what you need.

    Args:
        id: As for any message.
        data: As for any message.
        key: As for any message.
        cursor: As for any message.
        type: What happened, as declared; "" when the entry does not say.
        time: When, as the feed wrote it; `None` when it did not.
        deleted: The entry says that something is gone.
        part: The list that it stands in; `None`: in none, as in a test of a handler.
        place: Where in it.
    """

    __slots__ = ("_deleted", "_part", "_place", "_time", "_type")

    def __init__(  # noqa: PLR0917  # a page is read by columns, and made of them in their order
        self,
        id: str,
        data: Any = None,
        key: str | None = None,
        cursor: Cursor | None = None,
        type: str = "",
        time: Any = None,
        deleted: bool = False,  # noqa: FBT001, FBT002  # likewise
        part: Part | None = None,
        place: int = 0,
    ) -> None:
        self._id = id
        self._data = data
        self._key = id if key is None else key
        self._cursor = cursor
        self._type = type
        self._time = time
        self._deleted = deleted
        self._part = part
        self._place = place

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
        return super().raw if self._part is None else self._part.raw(self._place)
