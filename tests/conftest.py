"""Every async test runs on asyncio and on trio, in virtual time unless its module says otherwise."""

import pytest

from push_to_poll_client.testing._virtual_time import virtual_time


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_time(request.param)
