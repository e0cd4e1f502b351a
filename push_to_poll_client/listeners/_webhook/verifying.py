"""WHETHER a request is authentic: several verifiers are asked, of which one suffices."""

from collections.abc import Sequence
from functools import partial

from push_to_poll_client.listeners._webhook.answers import UNAUTHENTIC, Refusal
from push_to_poll_client.listeners._webhook.faults import Faults
from push_to_poll_client.listeners._webhook.request import Verified, Verifier, WebhookRequest

__all__ = ["Verifiers"]


class Verifiers:
    """Those of a webhook.

    Args:
        verifiers: One or more.
        faults: Where it is told when one fails.
    """

    def __init__(self, verifiers: Sequence[Verifier], faults: Faults) -> None:
        self._verifiers = verifiers
        self._faults = faults

    def that_may_pass(self, request: WebhookRequest) -> Sequence[Verifier]:
        """Those by which the request may be authentic, as far as can be seen without its body.

        Raises:
            Refusal: There is none.
        """
        if verifiers := [verifier for verifier in self._verifiers if self._may_pass(verifier, request)]:
            return verifiers
        self._faults.refused("without a signature or token of the expected form and time")
        raise Refusal(UNAUTHENTIC, "refused")

    async def verified(self, request: WebhookRequest, verifiers: Sequence[Verifier]) -> Verified:
        """What is known of an authentic request.

        Args:
            request: Whole.
            verifiers: Those that may pass it.

        Raises:
            Refusal: It is not authentic.
        """
        for verifier in verifiers:
            said = await self._faults.asked("a verifier", partial(verifier, request), check=_checked)
            if said:
                return said if isinstance(said, Verified) else Verified()
        self._faults.refused("whose signature or token is wrong; is the secret its sender's?")
        raise Refusal(UNAUTHENTIC, "refused")

    def _may_pass(self, verifier: Verifier, request: WebhookRequest) -> bool:
        may_pass = getattr(verifier, "may_pass", None)
        try:
            return may_pass is None or bool(may_pass(request))
        except Exception as error:  # noqa: BLE001  # as for a verifier
            self._faults.tell("a verifier's may_pass", error)
            return False


def _checked(said: Verified | bool | None) -> Verified | bool | None:  # noqa: FBT001  # it is what was said
    """What is merely true may be a mistake, such as a function that makes a verifier in place of a verifier."""
    if said is None or isinstance(said, Verified | bool):
        return said
    raise TypeError(f"a verifier says Verified, True, False or None, not {type(said).__name__}")
