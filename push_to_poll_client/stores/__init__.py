"""Where was I: one file for each kind of store."""

from push_to_poll_client.stores.memory import MemoryStore
from push_to_poll_client.stores.sqlite import SQLiteStore

__all__ = ["MemoryStore", "SQLiteStore"]
