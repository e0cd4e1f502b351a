"""For tests, yours and ours: fakes that misbehave, conformance suites, virtual time, a reference server.

The server needs uvicorn (the extra `serve`) and the suites need pytest; each is imported when it is asked for.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from push_to_poll_client._validation import missing_dependency
from push_to_poll_client.testing._fake_feed import Answer, Asked, FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from push_to_poll_client.testing._reference.app import ReferenceApp
from push_to_poll_client.testing._reference.control import Faults, PushRecord, Stats
from push_to_poll_client.testing._virtual_time import VirtualTimeLoop, virtual_time

if TYPE_CHECKING:
    from push_to_poll_client.testing._feed_suite import FeedSuite
    from push_to_poll_client.testing._store_suite import StoreSuite
    from push_to_poll_client.testing._transactional_suite import TransactionalStoreSuite
    from push_to_poll_client.testing.server import ReferenceServer, serve_in_thread

__all__ = [
    "Answer",
    "Asked",
    "FakeFeed",
    "Faults",
    "FeedSuite",
    "ManualListener",
    "PushRecord",
    "ReferenceApp",
    "ReferenceServer",
    "Stats",
    "StoreSuite",
    "TransactionalStoreSuite",
    "VirtualTimeLoop",
    "serve_in_thread",
    "virtual_time",
]

_LATER = {
    "FeedSuite": "_feed_suite",
    "ReferenceServer": "server",
    "StoreSuite": "_store_suite",
    "TransactionalStoreSuite": "_transactional_suite",
    "serve_in_thread": "server",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"{__name__}.{_LATER[name]}"
    if module.endswith("_suite") and module not in sys.modules:
        try:
            pytest = import_module("pytest")
        except ImportError as error:
            raise missing_dependency(name, "pytest", error, remedy="pip install pytest") from error
        pytest.register_assert_rewrite(module)  # a failing suite shows what it compared
    return getattr(import_module(module), name)
