"""Tools for tests: fakes that fail on command, conformance suites, virtual time, a reference server.

The server needs uvicorn (the extra `serve`), the suites need pytest. Each is imported at its first use.
"""

import sys
from typing import TYPE_CHECKING, Any

from push_to_poll_client._lazy_exports import lazy_exports
from push_to_poll_client._validation import missing_dependency
from push_to_poll_client.testing._fake_feed import Answer, Asked, FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from push_to_poll_client.testing._reference.app import ReferenceApp
from push_to_poll_client.testing._reference.control import Faults, PushRecord, Stats
from push_to_poll_client.testing._virtual_time import VirtualTimeLoop, virtual_time

if TYPE_CHECKING:
    from push_to_poll_client.testing._feed_suite import FeedSuite
    from push_to_poll_client.testing._leased_suite import LeasedStoreSuite
    from push_to_poll_client.testing._store_suite import StoreSuite
    from push_to_poll_client.testing._transactional_suite import TransactionalStoreSuite
    from push_to_poll_client.testing.server import ReferenceServer, serve_in_thread
else:
    _SUITES = {
        "_feed_suite": ["FeedSuite"],
        "_leased_suite": ["LeasedStoreSuite"],
        "_store_suite": ["StoreSuite"],
        "_transactional_suite": ["TransactionalStoreSuite"],
    }
    _, _import_name, __dir__ = lazy_exports(
        __name__, {**_SUITES, "server": ["ReferenceServer", "serve_in_thread"]}
    )

    def __getattr__(name: str) -> Any:
        if [name] in _SUITES.values():
            try:
                import pytest
            except ImportError as error:
                raise missing_dependency(name, "pytest", error, remedy="pip install pytest") from error
            modules = {f"{__name__}.{module}" for module in _SUITES}
            pytest.register_assert_rewrite(*modules - sys.modules.keys())  # a failing suite shows what it compared
        return _import_name(name)


__all__ = [
    "Answer",
    "Asked",
    "FakeFeed",
    "Faults",
    "FeedSuite",
    "LeasedStoreSuite",
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
