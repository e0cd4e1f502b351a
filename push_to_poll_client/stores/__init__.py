"""Stores: cursors, dedupe records and dead letters, a module for each kind."""

from push_to_poll_client.stores.memory import MemoryStore
from push_to_poll_client.stores.sqlite import SQLiteStore

__all__ = ["MemoryStore", "SQLiteStore"]
