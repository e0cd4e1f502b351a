"""A feed of your own, for an API that needs two requests: one for the changes, one for each ticket.

    python examples/custom_feed.py https://desk.example tickets.db

`PagedFeed` cannot read such an API, because each message needs a second request. A feed is an object with one
method, `fetch`. The API:

    GET /changes?after=17&limit=50    {"changes": [{"number": 18, "ticket": "T-4"}, …], "more": false}
    GET /tickets/T-4                  the newest version of the ticket; 404 if it was deleted
"""

import sys
from typing import Any

import anyio
import httpx

from push_to_poll_client import Consumer, FetchRequest, Message, Page, PushToPollError, SQLiteStore

PAGE_SIZE = 50


class TicketFeed:
    """The changes of a help desk's tickets.

    Args:
        client: HTTP client with the help desk's URL as `base_url`, the credentials, and a timeout.
    """

    identity = "tickets of the help desk"  # do not change it: the store binds the consumer's name to it
    read_ahead = True  # a fetch acknowledges nothing, so the next page may be fetched early

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def fetch(self, request: FetchRequest) -> Page:
        """Return the changes after the change number in `request.cursor`; None means from the beginning."""
        params = {"after": request.cursor or "0", "limit": str(PAGE_SIZE)}
        answer = await self.client.get("/changes", params=params)
        answer.raise_for_status()  # the consumer understands the errors of httpx, and obeys Retry-After
        found = answer.json()
        messages = [await self._message(change) for change in found["changes"]]
        end = messages[-1].cursor if messages else None
        return Page(messages, cursor=end, next_page=end if found["more"] else None)

    async def _message(self, change: dict[str, Any]) -> Message:
        answer = await self.client.get(f"/tickets/{change['ticket']}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            ticket = {"id": change["ticket"], "deleted": True}
        else:
            ticket = answer.raise_for_status().json()
        # Use the number of the change as id, not the id of the ticket. Otherwise the second change of a ticket
        # would be a duplicate of the first.
        number = str(change["number"])
        return Message(number, ticket, cursor=number)


def process(message: Message) -> None:
    """Handle one change."""
    print(message.id, message.data)


async def main(url: str, state: str) -> None:
    """Print each change once, across restarts, until the program is stopped."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        feed = TicketFeed(client)
        await Consumer(feed, store=SQLiteStore(state), name="tickets", process=process).run()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        anyio.run(lambda: main(*sys.argv[1:]))
    except PushToPollError as error:
        sys.exit(str(error))
