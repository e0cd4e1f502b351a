"""A subscription made of three functions of the caller."""

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
    """A subscription of three functions, async ones or plain ones, which run in a thread.

    What they raise says what it means, as for `raise_for_status()` of httpx: 5xx, 408, 425 and 429 are tried again
    soon and ever more slowly, `Retry-After` is obeyed, other 4xx are tried again after 5 to 7.5 minutes, and 410
    ends the consumer. From `renew`, 404, 410 and `SubscriptionGone` mean that the server has dropped it: another
    one is created. `ListenerError` ends the consumer, and any other error is taken for passing.

    Args:
        create: Asks the server to push, and returns the registration when it will. It is given what was planned: a
            new UUID as `id`, and `details["secret"]`, 43 random characters for the server to show with each push.
            It may be given the same plan again, after an error or a crash, when the server may have it already:
            look for it there, or raise `SubscriptionGone` to have another one planned. Return the expiry that the
            server answered, and in `details` all that the other two need; as a rule
            `msgspec.structs.replace(planned, expires_at=…)`.
        renew: Makes it last longer, and returns the registration from then on; `None`: it has to be replaced.
            `None` in place of a function: always. Then another is created while this one goes on, which is
            stopped thereafter.
        stop: Asks the server to push no more. `None`: it cannot be asked, and what is left ends by itself.
        name: By what status and log call it, without secrets; and what it asks for is known by: a restart with
            another name creates anew, and stops what there was.

    Attributes:
        registrations: Those whose pushes are welcome: the planned one, the one in force, those on their way out.
        renewable: Whether there is a `renew`: then a restart begins with it.

    Raises:
        TypeError: One of them is no function.
    """

    def __init__(self, create: Create, renew: Renew | None = None, stop: Stop | None = None, *, name: str) -> None:
        for what, function in {"create": create, "renew": renew, "stop": stop}.items():
            if not callable(function) and (function is not None or what == "create"):
                raise TypeError(f"{what} is a {type(function).__name__}; give a function")
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
        """Those that an authentic push shows one of."""
        return tuple(one.details["secret"] for one in self.registrations if "secret" in one.details)

    def verified_by(self, verifier_of: Callable[[Sequence[str]], Verifier]) -> Verifier:
        """A verifier for the webhook, which goes by the secrets that there are at the time.

            WebhookListener(channels.verified_by(header_token), subscription=channels)

        Args:
            verifier_of: Makes a verifier of secrets, as `header_token` and `token_in_body` do.
        """
        return _RotatingVerifier(self, verifier_of)

    def adopt(self, registrations: Sequence[Registration]) -> None:
        """Know whose pushes are welcome."""
        self.registrations = tuple(registrations)

    def plan(self) -> Registration:
        """A new UUID, and a new secret."""
        return Registration(id=str(uuid.uuid4()), details={"secret": token_urlsafe(32)})

    async def create(self, planned: Registration, /) -> Registration:
        """Call the user's function."""
        return cast("Registration", await _call(self._create, planned))  # the manager checks what it returned

    async def renew(self, registration: Registration, /) -> Registration | None:
        """Call the user's function."""
        return cast("Registration | None", await _call(self._renew, registration))

    async def stop(self, registration: Registration, /) -> None:
        """Call the user's function."""
        await _call(self._stop, registration)


class _RotatingVerifier:
    """Makes a new verifier when the secrets have changed. While there are none, nothing is authentic."""

    def __init__(self, subscription: CustomSubscription, verifier_of: Callable[[Sequence[str]], Verifier]) -> None:
        self._subscription = subscription
        self._verifier_of = lru_cache(maxsize=1)(verifier_of)

    def may_pass(self, request: WebhookRequest) -> bool:
        """Return whether a request has the headers of an authentic one."""
        if not (secrets := self._subscription.secrets):
            return False
        may_pass = getattr(self._verifier_of(secrets), "may_pass", None)
        return may_pass is None or bool(may_pass(request))

    def __call__(self, request: WebhookRequest, /) -> Any:
        secrets = self._subscription.secrets
        return self._verifier_of(secrets)(request) if secrets else False


async def _call(function: Callable[[Registration], Any] | None, registration: Registration) -> Any:
    """Call an async function, or a plain one in a thread, so that it does not stop the event loop."""
    if function is None:
        return None
    called = getattr(function, "__call__", None)  # noqa: B004 - not whether it can be called, but what is
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):
        return await function(registration)
    # A thread that hangs is left to itself. In a tuple, since trio takes a thread that returns a coroutine for a
    # mistake.
    (result,) = await anyio.to_thread.run_sync(lambda: (function(registration),), abandon_on_cancel=True)
    return await result if inspect.isawaitable(result) else result
