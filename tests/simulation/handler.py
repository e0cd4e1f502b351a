"""Simulated handler: it takes time, fails and recovers, as planned for each message."""

from collections import Counter
from collections.abc import Sequence

import anyio
import anyio.lowlevel

from push_to_poll_client import DeadLetterMessage, Message, RetryMessage, SkipMessage, StopConsumer
from tests.simulation.feed import CALLER
from tests.simulation.journal import Journal
from tests.simulation.plan import HandlerPlan, share

__all__ = ["Handler"]


class PoisonError(Exception):
    """A message that always fails."""


class Handler:
    """The simulated handler.

    Args:
        plan: Its behaviour.
        seed: Decides which messages fail.
        journal: Records each call and its result.
        shutdown_timeout: Some calls take longer than this.

    Attributes:
        troubled: True while the plan has faults.
    """

    def __init__(self, plan: HandlerPlan, seed: int, journal: Journal, *, shutdown_timeout: float) -> None:
        self.troubled = True
        self._plan = plan
        self._seed = seed
        self._journal = journal
        self._overlong = shutdown_timeout * 1.5 + 0.1
        self._tried: Counter[str] = Counter()
        self._calls = 0

    async def handle(self, messages: Sequence[Message], client: int) -> None:
        """Handle one message, or a batch."""
        self._calls += 1
        ids, call = tuple(message.id for message in messages), self._calls
        takes = self._plan.takes
        if self.troubled and self._plan.overlong and self._chance("overlong", call) < self._plan.overlong:
            takes = self._overlong
        self._journal.add("handle", client, ids=ids, call=call, who=CALLER.get())
        error, what = None, "interrupted"
        try:
            await (anyio.sleep(takes) if takes else anyio.lowlevel.checkpoint())
            error = self._failure(ids)
            what = "handled" if error is None else "failed"
        finally:
            self._journal.add(
                what, client, ids=ids, call=call, error=type(error).__name__ if error else None,
                after=getattr(error, "after", None), who=CALLER.get(),
            )  # fmt: skip
        if error is not None:
            raise error

    def _failure(self, ids: Sequence[str]) -> Exception | None:
        if not self.troubled:
            return None
        if not self._plan.failing:
            return None
        for name in ids:
            self._tried[name] += 1
            if self._chance("poison", name) < self._plan.poison:
                return PoisonError(name)
            fails = self._chance("fails", name) < self._plan.failing
            times = 1 + int(self._chance("times", name) * self._plan.attempts)
            if fails and self._tried[name] <= times:
                return self._error(name)
        return None

    def _error(self, name: str) -> Exception:
        verdicts = self._plan.verdicts
        verdict = verdicts[int(self._chance("verdict", name) * len(verdicts))]
        if verdict == "retry":
            return RetryMessage("later", after=self._plan.retry_after)
        errors = {"skip": SkipMessage, "dead": DeadLetterMessage, "stop": StopConsumer}
        return errors.get(verdict, ValueError)(name)

    def _chance(self, what: str, which: object) -> float:
        return share(self._seed, what, which)
