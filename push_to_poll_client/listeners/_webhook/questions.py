"""WHETHER a request asks if pushes are wanted, and what is answered then.

A handshake is asked twice at most: before anything is read, since most questions stand in the query or in headers
and come unsigned; and again with the body of an authentic request, since some stand there (Slack, Zoom). Questions
that come unsigned have a rate of their own, so that whoever asks without end keeps no push from being heard.
"""

from collections.abc import Callable, Sequence
from functools import partial

from push_to_poll_client.listeners._webhook.answers import Refusal, check_answer, too_many
from push_to_poll_client.listeners._webhook.faults import Faults
from push_to_poll_client.listeners._webhook.limits import TokenBucket
from push_to_poll_client.listeners._webhook.request import Handshake, WebhookAnswer, WebhookRequest

__all__ = ["Questions"]


class Questions:
    """The handshakes of a webhook.

    Args:
        always: Those that know by themselves what is expected.
        expected: Those that are asked only while something is.
        expecting: Whether something is.
        bucket: How many unsigned questions are looked at.
        faults: Where it is told when one fails.
    """

    def __init__(
        self,
        always: Sequence[Handshake],
        expected: Sequence[Handshake],
        *,
        expecting: Callable[[], bool],
        bucket: TokenBucket,
        faults: Faults,
    ) -> None:
        self._always = always
        self._expected = expected
        self._expecting = expecting
        self._bucket = bucket
        self._faults = faults

    async def answer_to_stranger(self, request: WebhookRequest, now: float) -> WebhookAnswer | None:
        """The answer to a question that may come from anybody; `None`: it is none.

        Args:
            request: Without a body.
            now: Seconds on a clock that never goes back.

        Raises:
            Refusal: Too many ask, and this can be nothing but a question.
        """
        if not (handshakes := self._handshakes):
            return None
        if wait := self._bucket.take(now):
            if request.method == "POST":
                return None  # it may be a push, which is not kept waiting by questions
            raise Refusal(too_many(wait), "limited")
        return await self._answer(handshakes, request)

    async def answer_to(self, request: WebhookRequest) -> WebhookAnswer | None:
        """The answer to a question in an authentic request; `None`: it is none."""
        return await self._answer(self._handshakes, request)

    @property
    def _handshakes(self) -> Sequence[Handshake]:
        return (*self._always, *self._expected) if self._expected and self._expecting() else self._always

    async def _answer(self, handshakes: Sequence[Handshake], request: WebhookRequest) -> WebhookAnswer | None:
        for handshake in handshakes:
            answer = await self._faults.asked("a handshake", partial(handshake, request), check=_checked)
            if answer is not None:
                return answer
        return None


def _checked(answer: WebhookAnswer | None) -> WebhookAnswer | None:
    return None if answer is None else check_answer(answer)
