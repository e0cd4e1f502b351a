"""Imports of names that do not exist are type errors, although public names are loaded lazily.

mypy reports each of these lines, else it would report an ignore that is not needed. Nobody runs them.
"""
# pyright: reportAttributeAccessIssue=false, reportUnknownVariableType=false, reportUnusedImport=false

from push_to_poll_client import Nothing  # type: ignore[attr-defined]  # noqa: F401
from push_to_poll_client.listeners import Nothing as Nothing2  # type: ignore[attr-defined]  # noqa: F401
from push_to_poll_client.testing import Nothing as Nothing3  # type: ignore[attr-defined]  # noqa: F401
