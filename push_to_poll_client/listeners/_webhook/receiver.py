"""WHAT BECOMES OF A REQUEST, in order. Each step costs more than the one before it, and is reached by fewer.

    length      a body that is said to be too large is not read                           413
    question    a handshake that is expected is answered; anything else but POST is not   405, 429
    headers     without those that an authentic request has it is refused                 401
    room        so many bodies are in hand at a time                                      503
    rate        so many are looked at a second                                            429
    body        is read, so much and so long                                              413, 408
    signature   is verified                                                               401
    question    some stand in a signed body
    replay      what came before is answered as then, and wakes nobody                    200
    meaning     it wakes those for whom it is                                             200

Nothing is processed here. A refusal by rate or room may have met a push, and is reported to those who listen.
"""

import time
from dataclasses import dataclass, replace

from push_to_poll_client.listeners._webhook.answers import NOT_ALLOWED, Refusal
from push_to_poll_client.listeners._webhook.asgi import Receive
from push_to_poll_client.listeners._webhook.audience import Audience
from push_to_poll_client.listeners._webhook.body import ClientGone, check_length, read_body
from push_to_poll_client.listeners._webhook.counters import Tally
from push_to_poll_client.listeners._webhook.faults import Faults
from push_to_poll_client.listeners._webhook.limits import Slots, TokenBucket
from push_to_poll_client.listeners._webhook.meaning import Meaning
from push_to_poll_client.listeners._webhook.questions import Questions
from push_to_poll_client.listeners._webhook.replays import Replays
from push_to_poll_client.listeners._webhook.request import Verified, WebhookAnswer, WebhookRequest
from push_to_poll_client.listeners._webhook.verifying import Verifiers

__all__ = ["Receiver"]

monotonic = time.monotonic
"""One clock for all event loops in which requests arrive, whose own need not agree."""


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """Takes requests.

    Attributes:
        questions: Asked whether a request is one.
        verifiers: Asked whether it is authentic.
        meaning: What it says.
        audience: Who listens.
        bucket: How many bodies are looked at a second.
        slots: How many at a time.
        replays: What came before.
        tally: Where it is counted.
        faults: Where it is told.
        answer: To an authentic request.
        max_body: Bytes.
        body_timeout: Seconds for a body.
    """

    questions: Questions
    verifiers: Verifiers
    meaning: Meaning
    audience: Audience
    bucket: TokenBucket
    slots: Slots
    replays: Replays
    tally: Tally
    faults: Faults
    answer: WebhookAnswer
    max_body: int
    body_timeout: float

    async def answer_to(self, request: WebhookRequest, receive: Receive) -> WebhookAnswer | None:
        """What is answered; `None`: nobody is there any more.

        Args:
            request: Without its body.
            receive: Brings that.
        """
        self.tally.count("received")
        try:
            return await self._answer_to(request, receive)
        except Refusal as refusal:
            self.tally.count(refusal.outcome)
            if refusal.hides_pushes:
                self.audience.ring()
            return refusal.answer
        except ClientGone:
            self.tally.count("gone")
            return None

    async def _answer_to(self, request: WebhookRequest, receive: Receive) -> WebhookAnswer:
        check_length(request.headers, self.max_body)
        answer = await self.questions.answer_to_stranger(request, monotonic())
        if answer is not None:
            self.tally.count("handshakes")
            return answer
        if request.method != "POST":
            raise Refusal(NOT_ALLOWED, "unasked")
        request, verified = await self._verified(request, receive)
        return await self._answer_to_authentic(request, verified)

    async def _verified(self, request: WebhookRequest, receive: Receive) -> tuple[WebhookRequest, Verified]:
        verifiers = self.verifiers.that_may_pass(request)
        with self.slots.one():
            self.bucket.pass_one(monotonic())
            body = await read_body(receive, most=self.max_body, within=self.body_timeout)
            request = replace(request, body=body)
            return request, await self.verifiers.verified(request, verifiers)

    async def _answer_to_authentic(self, request: WebhookRequest, verified: Verified) -> WebhookAnswer:
        answer = await self.questions.answer_to(request)
        if answer is not None:
            self.tally.count("handshakes")
            return answer
        names = self.meaning.names_in(request)
        if self.replays.knows(verified, names, request.received_at):
            self.tally.count("replayed")
            self.faults.repeated()
        elif self.meaning.act_on(request, names):
            self.replays.remember(verified, names)
        return self.answer
