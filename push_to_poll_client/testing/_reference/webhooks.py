"""Webhooks of the reference server: signed, retried, and forged on command.

They are signed by the specification Standard Webhooks 1.0.0. A push has the same id in each attempt and at each
receiver.
"""

import binascii
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import httpx
import msgspec

from push_to_poll_client._http.origins import parse_http_url
from push_to_poll_client.testing._reference.control import PushRecord
from push_to_poll_client.testing._reference.state import PushSubscription, ReferenceState
from push_to_poll_client.testing._virtual_time import Bell

TIMEOUT = 5.0
"""Seconds for a receiver to answer. Then the push is retried."""

FORGED_KEY = b"a key that the receiver does not have"


@dataclass(eq=False)
class _PushReceiver:
    url: str
    key: bytes
    subscription: PushSubscription


class WebhookSender:
    """Sends each push to its receivers while a server runs. A stop drops undelivered pushes, as a crash does."""

    def __init__(self, state: ReferenceState, *, retries: Sequence[float]) -> None:
        self._state = state
        self._retries = retries
        self._receivers: dict[str, _PushReceiver] = {}
        self._bell = Bell()

    def register(self, url: str, secret: str | None) -> list[str]:
        """Add, replace or (with `secret=None`) remove a receiver, and return the URLs of all receivers."""
        if secret is None:
            self._receivers.pop(url, None)
        else:
            if not (key := binascii.a2b_base64(secret.removeprefix("whsec_"), strict_mode=True)):
                raise ValueError("the secret is empty")
            self._receivers[url] = _PushReceiver(
                str(parse_http_url(url)), key, PushSubscription(self._state, closes=False)
            )
        self._bell.ring()
        return list(self._receivers)

    async def run(self) -> None:
        self._bell = Bell()
        for receiver in self._receivers.values():
            receiver.subscription = PushSubscription(self._state, closes=False)
        async with (
            httpx.AsyncClient(trust_env=False, timeout=TIMEOUT) as client,
            anyio.create_task_group() as tasks,
        ):
            served: dict[_PushReceiver, anyio.CancelScope] = {}
            while True:
                for receiver in served.keys() - {*self._receivers.values()}:
                    served.pop(receiver).cancel()
                for receiver in {*self._receivers.values()} - served.keys():
                    served[receiver] = anyio.CancelScope()
                    tasks.start_soon(self._serve, client, receiver, served[receiver])
                await self._bell.wait()

    async def _serve(self, client: httpx.AsyncClient, receiver: _PushReceiver, scope: anyio.CancelScope) -> None:
        # Each push has a task of its own, so that a retried one does not delay the next.
        with scope:
            async with anyio.create_task_group() as tasks:
                while (record := await receiver.subscription.next()) is not None:
                    tasks.start_soon(self._deliver, client, receiver, record)

    async def _deliver(self, client: httpx.AsyncClient, receiver: _PushReceiver, record: PushRecord) -> None:
        for delay in (0.0, *self._retries):
            await anyio.sleep(delay)
            status = await self._send(client, receiver, record)
            self._state.stats.count_status(self._state.stats.webhooks, status)
            if httpx.codes.is_success(status):
                return
        self._state.stats.count(webhooks_given_up=1)

    async def _send(self, client: httpx.AsyncClient, receiver: _PushReceiver, record: PushRecord) -> int:
        """Send a push, and return the status of the answer, or 0 without an answer."""
        key = FORGED_KEY if self._state.faults.takes("forge_next") else receiver.key
        push_id, now = f"push_{record.cursor}", str(int(time.time()))
        body = msgspec.json.encode({"cursor": record.cursor})
        mac = hmac.digest(key, f"{push_id}.{now}.".encode() + body, "sha256")
        headers = {
            "content-type": "application/json",
            "webhook-id": push_id,
            "webhook-timestamp": now,
            "webhook-signature": f"v1,{binascii.b2a_base64(mac, newline=False).decode()}",
        }
        try:
            return (await client.post(receiver.url, content=body, headers=headers)).status_code
        except httpx.HTTPError:
            return 0
