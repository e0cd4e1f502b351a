"""WHAT an authentic request says, and for whom: it becomes wakes, or a word to whoever keeps the subscription."""

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from push_to_poll_client._types import Push
from push_to_poll_client.listeners._hints import Hints
from push_to_poll_client.listeners._paths import path_of, texts_at
from push_to_poll_client.listeners._webhook.audience import Audience, Listening
from push_to_poll_client.listeners._webhook.counters import Tally
from push_to_poll_client.listeners._webhook.faults import Faults
from push_to_poll_client.listeners._webhook.request import Control, Hint, To, WebhookRequest

__all__ = ["MAX_NAMES", "Meaning", "names_at"]

MAX_NAMES = 1_000
"""Names that are taken from a push; one with more is for all."""


class Meaning:
    """Acts on authentic requests. Whatever the user's functions do, no push is lost by it.

    Args:
        name: The webhook's.
        hint: Makes a push of a request; `None`: each is one.
        to: Names those for whom it is; `None`: all.
        control: Told what the server says of the subscription; `None`: nobody keeps one, and it means a poll.
        audience: Who listens.
        tally: Where it is counted.
        faults: Where it is told when `to` fails.
        log: Where it is told when `hint` fails.
    """

    def __init__(
        self,
        name: str,
        *,
        hint: Hint | None,
        to: To | None,
        control: Callable[[Control], None] | None,
        audience: Audience,
        tally: Tally,
        faults: Faults,
        log: logging.Logger,
    ) -> None:
        self._name = name
        self._hints = Hints[WebhookRequest, Push | Control](hint, kinds=(Push, Control), log=log)
        self._to = to
        self._control = control
        self._audience = audience
        self._tally = tally
        self._faults = faults

    def names_in(self, request: WebhookRequest) -> Sequence[str] | None:
        """For whom it is; `None`: all."""
        if self._to is None:
            return None
        try:
            return _checked(self._to(request))
        except Exception as error:  # noqa: BLE001  # it is the user's, and a stranger's text may have got it there
            self._faults.tell("to (its push is taken to be for all)", error)
            return None

    def act_on(self, request: WebhookRequest, names: Sequence[str] | None) -> bool:
        """Do what it says.

        Args:
            request: Authentic, and no repetition.
            names: For whom it is.

        Returns:
            Whether anybody heard it.
        """
        said = self._hints.of(request, self._name)
        if said is None:
            self._tally.count("ignored")
            return False
        if isinstance(said, Control):
            self._tally.count("controls")
            return self._obey(said, names)
        return self._pass_on(said, names)

    def _obey(self, control: Control, names: Sequence[str] | None) -> bool:
        if self._control is not None and control is not Control.MISSED:
            self._control(control)
            return True
        listening = self._listening(names)
        for one in listening:
            one.poll()
        return bool(listening)

    def _pass_on(self, push: Push, names: Sequence[str] | None) -> bool:
        listening = self._listening(names)
        for one in listening:
            one.wake(push)
        self._tally.count("woken" if listening else "unheard")
        return bool(listening)

    def _listening(self, names: Sequence[str] | None) -> Sequence[Listening]:
        listening, unknown = self._audience.of(names)
        self._tally.count("unknown_names", unknown)
        return listening


def _checked(names: Iterable[str] | None) -> list[str] | None:
    """Each once; a `str` is one name."""
    if names is None:
        return None
    first = [names] if isinstance(names, str) else list(islice(names, MAX_NAMES + 1))
    if not all(isinstance(name, str) for name in first):
        raise TypeError("names are texts")
    return list(dict.fromkeys(first)) if len(first) <= MAX_NAMES else None


def names_at(path: str) -> To:
    """Reads names from the body. One that is no JSON, or has nothing there, is for all.

    Args:
        path: Where they stand, as "list_folder.accounts".

    Raises:
        ValueError: It is no path.
    """
    steps = path_of(path)

    def names(request: WebhookRequest) -> list[str] | None:
        try:
            value = request.json()
        except ValueError:
            return None
        return texts_at(value, steps, most=MAX_NAMES + 1) or None

    return names
