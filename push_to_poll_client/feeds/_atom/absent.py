"""What is not found: for a while, or for good."""

from collections import OrderedDict
from http import HTTPStatus

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http.response import Answer

__all__ = ["Absent"]

MOST_TIMES = 3
"""Not found (404) so often, a document is taken for gone: a deployment is over then."""

WAIT = 60.0
"""Seconds in between."""

MOST_ADDRESSES = 16
"""Remembered: one for each consumer of the feed."""


class Absent:
    """Documents of one feed that others led to."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, int] = OrderedDict()

    def is_gone(self, address: str, answer: Answer) -> bool:
        """Whether there is no such document any more. 410 says so; of 404 nobody knows for how long it is true.

        Raises:
            FeedError: It is to be asked for again: what is taken for gone once is never asked for again.
        """
        times = self._times.pop(address, 0) + 1
        if answer.status != HTTPStatus.NOT_FOUND or times >= MOST_TIMES:
            return answer.status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
        self._times[address] = times
        if len(self._times) > MOST_ADDRESSES:
            self._times.popitem(last=False)
        wait = max(WAIT, answer.retry_after or 0.0)
        raise FeedError(f"{answer.where} led to a document that is not found (404)", retry_after=wait)
