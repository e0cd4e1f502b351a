"""Stores: cursors, dedupe records and dead letters, a module for each kind."""

from typing import TYPE_CHECKING

from push_to_poll_client._lazy_exports import lazy_exports

if TYPE_CHECKING:
    from push_to_poll_client.stores.memory import MemoryStore as MemoryStore
    from push_to_poll_client.stores.sqlite import SQLiteStore as SQLiteStore
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "memory": ["MemoryStore"],
            "sqlite": ["SQLiteStore"],
        },
    )
