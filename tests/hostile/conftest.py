"""The attacked consumer and a normal feed, shared by all modules."""

import pytest

pytest.register_assert_rewrite("tests.hostile.measured")  # a failing check shows what it compared

from tests.hostile.attackers import Server  # noqa: E402
from tests.hostile.measured import Victims  # noqa: E402


@pytest.fixture(scope="session")
def victims():
    with Victims() as victims:
        yield victims


@pytest.fixture(scope="session")
def well_feed():
    with Server({}) as feed:
        yield feed
