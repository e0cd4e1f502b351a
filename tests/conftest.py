"""Every async test runs on asyncio and on trio, in virtual time unless its module says otherwise."""

import logging

import anyio
import pytest
from hypothesis import settings

from push_to_poll_client.testing._virtual_time import virtual_time

# A machine that is busy elsewhere is no failure, and the same examples everywhere are no flakiness.
settings.register_profile("ours", deadline=None, derandomize=True)
settings.load_profile("ours")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_time(request.param)


@pytest.fixture
def virtual_day(monkeypatch):
    """Times of day go with virtual time, over restarts too: the library asks for them in the event loop."""
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: 1e9 + anyio.current_time())


@pytest.fixture
async def running():
    """Runs consumers in the background until the test ends."""
    async with anyio.create_task_group() as tasks:

        def start(consumer):
            tasks.start_soon(consumer.run)
            return consumer

        yield start
        tasks.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _own_log():
    """The command line sets up the library's log; no test sees what another one set up."""
    logger = logging.getLogger("push_to_poll_client")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
