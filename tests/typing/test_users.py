"""What a user writes, read by mypy alone: it must pass `--strict` without a cast or an ignore."""

from push_to_poll_client._types import FetchRequest, Message, Page


class OwnFeed:
    async def fetch(self, request: FetchRequest, /) -> Page:
        if request.cursor is not None:
            return Page()
        return Page([Message("1", {"total": 12})], cursor="1", next="1")
