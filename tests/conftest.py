"""Every async test runs on asyncio and on trio, in virtual time unless its module says otherwise."""

import anyio
import pytest

from push_to_poll_client.testing._virtual_time import virtual_time


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_time(request.param)


@pytest.fixture
async def running():
    """Runs consumers in the background until the test ends."""
    async with anyio.create_task_group() as tasks:

        def start(consumer):
            tasks.start_soon(consumer.run)
            return consumer

        yield start
        tasks.cancel_scope.cancel()
