"""A subscription made of three functions that the caller passes."""

import inspect
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from secrets import token_urlsafe
from typing import Any, TypeAlias, cast

import anyio.to_thread

from push_to_poll_client.listeners._webhook.types import Verifier, WebhookRequest
from push_to_poll_client.listeners.subscriptions._types import Registration

Create: TypeAlias = Callable[[Registration], Registration | Awaitable[Registration]]
Renew: TypeAlias = Callable[[Registration], Registration | Awaitable[Registration | None] | None]
Stop: TypeAlias = Callable[[Registration], object]


class CustomSubscription:
    """A subscription made of three functions, either async or plain. Plain ones run in a thread.

    An error raised by a function decides what happens next; httpx's `raise_for_status()` gives the right ones.
    After 5xx, 408, 425 and 429 the call is retried with growing delays, and `Retry-After` is obeyed. After other
    4xx it is retried in 5 to 7.5 minutes. 410 and `ListenerError` stop the consumer. In `renew`, 404, 410 and
    `SubscriptionGone` mean that the server has dropped the registration: a new one is created. Any other error is
    retried.

    Args:
        create: Asks the server to push, and returns the registration when the server will. Its argument is the
            plan: a new UUID as `id`, and 43 random characters as `details["secret"]`, which the server must show
            with each push. After an error or a crash it may get the same plan again, and the server may already
            have it: look for it there, or raise `SubscriptionGone` to get a new plan. Return the expiry from the
            server's response, and in `details` everything that `renew` and `stop` need; usually
            `msgspec.structs.replace(planned, expires_at=…)`.
        renew: Extends the registration, and returns its new state, or `None` to have it replaced. `None` instead
            of a function always replaces it: a new one is created, then the old one is stopped.
        stop: Asks the server to stop pushing. `None` if the server does not support this; registrations then
            expire.
        name: Name in status and log lines, without secrets. It also identifies the request: after a restart with
            another name, a new registration is created and the old one is stopped.

    Attributes:
        registrations: Registrations whose pushes are accepted: planned, active, and to be stopped.
        renewable: True if `renew` was given. Then a restart starts with a renewal.

    Raises:
        TypeError: `create`, `renew` or `stop` is not a function.
    """

    def __init__(self, create: Create, renew: Renew | None = None, stop: Stop | None = None, *, name: str) -> None:
        for what, function in {"create": create, "renew": renew, "stop": stop}.items():
            if not callable(function) and (function is not None or what == "create"):
                raise TypeError(f"{what} must be a function, got {type(function).__name__}")
        self.name: str = name
        self.registrations: Sequence[Registration] = ()
        self.renewable: bool = renew is not None
        self._create = create
        self._renew = renew
        self._stop = stop

    def __repr__(self) -> str:
        return f"CustomSubscription(name={self.name!r})"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Secrets of all registrations. An authentic push shows one of these."""
        return tuple(one.details["secret"] for one in self.registrations if "secret" in one.details)

    def verified_by(self, verifier_of: Callable[[Sequence[str]], Verifier]) -> Verifier:
        """Return a verifier for the webhook that always uses the current secrets.

            WebhookListener(channels.verified_by(header_token), subscription=channels)

        Args:
            verifier_of: Makes a verifier from secrets, such as `header_token` or `token_in_body`.
        """
        return _RotatingVerifier(self, verifier_of)

    def adopt(self, registrations: Sequence[Registration]) -> None:
        """Replace the registrations whose pushes are accepted."""
        self.registrations = tuple(registrations)

    def plan(self) -> Registration:
        """Return a new UUID and a new secret."""
        return Registration(id=str(uuid.uuid4()), details={"secret": token_urlsafe(32)})

    async def create(self, planned: Registration, /) -> Registration:
        """Call the caller's `create`."""
        return cast("Registration", await _call(self._create, planned))  # the manager checks what it returned

    async def renew(self, registration: Registration, /) -> Registration | None:
        """Call the caller's `renew`."""
        return cast("Registration | None", await _call(self._renew, registration))

    async def stop(self, registration: Registration, /) -> None:
        """Call the caller's `stop`."""
        await _call(self._stop, registration)


class _RotatingVerifier:
    """Makes a new verifier when the secrets change. Rejects everything while there are none."""

    def __init__(self, subscription: CustomSubscription, verifier_of: Callable[[Sequence[str]], Verifier]) -> None:
        self._subscription = subscription
        self._verifier_of = lru_cache(maxsize=1)(verifier_of)

    def may_pass(self, request: WebhookRequest) -> bool:
        if not (secrets := self._subscription.secrets):
            return False
        may_pass = getattr(self._verifier_of(secrets), "may_pass", None)
        return may_pass is None or bool(may_pass(request))

    def __call__(self, request: WebhookRequest, /) -> Any:
        secrets = self._subscription.secrets
        return self._verifier_of(secrets)(request) if secrets else False


async def _call(function: Callable[[Registration], Any] | None, registration: Registration) -> Any:
    if function is None:
        return None
    called = getattr(function, "__call__", None)  # noqa: B004 - an object may have an async `__call__`
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):
        return await function(registration)
    # A thread that hangs is abandoned. The result is in a tuple, since trio rejects a thread that returns a
    # coroutine.
    (result,) = await anyio.to_thread.run_sync(lambda: (function(registration),), abandon_on_cancel=True)
    return await result if inspect.isawaitable(result) else result
