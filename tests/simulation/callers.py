"""Callers of a consumer: they call, wake, run and stop it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from push_to_poll_client import Consumer, FeedError, Message, ProcessError, StoreBusy, StoreError, Throttled
from push_to_poll_client.testing import ManualListener
from tests.simulation.feed import CALLER, Server, SimulatedFeed
from tests.simulation.journal import Journal
from tests.simulation.oracle import Oracle
from tests.simulation.plan import Action
from tests.simulation.store import CLIENT, SimulatedStore

__all__ = ["PASSING", "Callers", "Run"]

PASSING = (FeedError, Throttled, ProcessError, StoreError)
"""Errors that a call may raise while the plan has faults."""


class Callers:
    """The callers of the consumers in one life.

    Args:
        journal: Records each call.
        oracle: Gets errors that no call may raise.
        server: Has cursors to rewind to.
        store: Claimed by a second owner.
    """

    def __init__(self, journal: Journal, oracle: Oracle, server: Server, store: SimulatedStore) -> None:
        self._journal = journal
        self._oracle = oracle
        self._server = server
        self._store = store
        self._calls = 0

    async def call(
        self,
        client: int,
        what: str,
        function: Callable[[], Awaitable[Any]],
        *,
        patience: float | None = None,
    ) -> Exception | None:
        """Call the consumer. Return its error, if it raises one.

        Args:
            client: Number of the consumer object.
            what: Name of the method.
            function: Makes the call.
            patience: Seconds after which the call is cancelled; `None` means never.
        """
        self._calls += 1
        name, result, error, cut = f"{what} {self._calls}", None, None, True
        CALLER.set(what)
        CLIENT.set(client)
        self._journal.add("call", client, what=what, call=name)
        try:
            with anyio.move_on_after(patience):
                result = await function()
                cut = False
        except Exception as raised:  # noqa: BLE001  # all but those that may be raised are reported
            error, cut = raised, False
            if not isinstance(error, PASSING) and not (what == "rewind" and isinstance(error, ValueError)):
                self._oracle.broken("G9", "a call raises what it may not raise", f"{what}: {error!r}")
        finally:
            self._journal.add(
                "returns",
                client,
                what=what,
                call=name,
                result=result,
                error=error and repr(error),
                cut=cut or None,
            )
            CALLER.set("run")
        return error

    async def catch_up(self, consumer: Consumer, client: int, *, patience: float) -> Exception | None:
        """Call `catch_up` for up to this many seconds. Return its error, if any."""
        return await self.call(client, "catch_up", consumer.catch_up, patience=patience)

    async def poll_now(
        self, consumer: Consumer, client: int, *, waits: float | None, patience: float | None = None
    ) -> Exception | None:
        """Call `poll_now` with this timeout. Return its error, if any."""
        return await self.call(client, "poll_now", lambda: consumer.poll_now(timeout=waits), patience=patience)

    async def act(
        self, action: Action, at: float, consumer: Consumer, client: int, listener: ManualListener | None
    ) -> None:
        """Perform an action of the plan at its time."""
        await anyio.sleep_until(at)
        value = action.value
        if action.what == "wake":
            self._wake(consumer, client, "wake()")
        elif action.what == "wake from a thread":
            self._wake_from_thread(consumer, client)
        elif action.what == "poll_now":
            await self.poll_now(consumer, client, waits=100.0 * value)
        elif action.what == "poll_now in a hurry":
            await self.poll_now(consumer, client, waits=None, patience=3.0 * value**3)
        elif action.what == "second owner":
            await self._try_to_own()
        elif action.what == "pause":
            await self._pause(consumer, client, 20.0 * value)
        elif action.what == "channel down" and listener is not None:
            await self._break_channel(listener, client, 20.0 * value)
        else:
            await self._move(action.what, consumer, client, value)

    async def _move(self, what: str, consumer: Consumer, client: int, value: float) -> None:
        if what == "rewind":
            await self.call(client, what, lambda: self._rewind(consumer, value))
        elif what == "replay":
            known = sorted(self._server.places)
            start = "inception" if value < 0.5 or not known else known[int(value * len(known))]
            await self.call(client, what, lambda: consumer.replay(start))
        elif what == "dead letters":
            await self.call(client, what, consumer.dead_letters.list)
            await self.call(client, what, consumer.dead_letters.retry)

    def _wake(self, consumer: Consumer, client: int, by: str) -> None:
        self._journal.add("wake", client, by=by)
        consumer.wake()

    def _wake_from_thread(self, consumer: Consumer, client: int) -> None:
        native: Any = anyio.lowlevel.current_token().native_token
        call_soon = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon
        call_soon(lambda: self._wake(consumer, client, "a thread"))

    async def _pause(self, consumer: Consumer, client: int, seconds: float) -> None:
        self._journal.add("pause", client)
        consumer.pause()
        await anyio.sleep(seconds)
        self._journal.add("resume", client)
        consumer.resume()

    async def _break_channel(self, listener: ManualListener, client: int, seconds: float) -> None:
        listener.disconnect(OSError("reset"))
        self._journal.add("channel", client, up=False)
        await anyio.sleep(seconds)
        self._journal.add("channel", client, up=True)
        self._journal.add("wake", client, by="a channel came up")
        listener.connect()

    async def _rewind(self, consumer: Consumer, value: float) -> None:
        forget = int(value * 100) % 3 == 0
        known = sorted(self._server.places)
        if value < 0.3 or not known:
            await consumer.rewind("inception", forget=forget)
        elif value < 0.5:
            await consumer.rewind("latest", forget=forget)
        elif value < 0.8:
            await consumer.rewind(known[int(value * len(known))], forget=forget)
        else:
            await consumer.rewind(ago=(value - 0.8) * 200.0, forget=forget)

    async def _try_to_own(self) -> None:
        if self._store.owner is None:
            return
        second = Consumer(SimulatedFeed(self._server, -1), store=self._store.inner, process=_refuse, name="life")
        try:
            await second.poll_now(timeout=None)
        except StoreBusy:
            return
        except PASSING:
            pass
        if self._store.owner is not None:
            self._oracle.broken("G10", "a second consumer has the name too")


async def _refuse(message: Message) -> None:
    raise AssertionError("the second owner processes a message")


class Run:
    """One call of `run()`, and the way to end it.

    Args:
        ends: "stop", "cancel" of its scope, "native" cancellation of its asyncio task, or "crash".
        journal: Records its begin and end.
        crash: Makes everything that the consumer does from now on ineffective.

    Attributes:
        ended: Set when it has ended.
        error: The error that it raised.
    """

    def __init__(
        self, consumer: Consumer, client: int, ends: str, journal: Journal, crash: Callable[[int], None]
    ) -> None:
        self.ended = anyio.Event()
        self.error: Exception | None = None
        self._consumer = consumer
        self._client = client
        self._ends = ends
        self._journal = journal
        self._crash = crash
        self._scope = anyio.CancelScope()
        self._task: asyncio.Task[None] | None = None

    def start(self, tasks: TaskGroup) -> None:
        """Begin."""
        if self._ends == "native":
            self._task = asyncio.get_running_loop().create_task(self._run())
        else:
            tasks.start_soon(self._run)

    async def _run(self) -> None:
        CLIENT.set(self._client)
        CALLER.set("run")
        self._journal.add("run", self._client)
        try:
            with self._scope:
                await self._consumer.run()
        except Exception as error:  # noqa: BLE001  # judged by the life
            self.error = error
        except asyncio.CancelledError:
            if self._task is None:
                raise
        finally:
            self._journal.add("run ended", self._client, error=self.error and repr(self.error))
            self.ended.set()

    async def end(self, patience: float) -> bool:
        """End it. Return False if it does not end in time and is cancelled."""
        if self.ended.is_set():
            return True
        if self._ends == "crash":
            self._crash(self._client)
        else:
            self._journal.add("stopping", self._client, how=self._ends)
        if self._ends == "stop":
            self._consumer.stop()
        else:
            self.cancel()
        with anyio.move_on_after(patience):
            await self.ended.wait()
            return True
        self._scope.cancel()
        await self.ended.wait()
        return False

    def cancel(self) -> None:
        """Cancel it."""
        if self._task is None:
            self._scope.cancel()
        else:
            self._task.cancel()
