"""Imports of missing names are type errors, although public names are loaded lazily.

Only for mypy, which reports each of these lines. Otherwise it would report an unneeded ignore.
"""
# pyright: reportAttributeAccessIssue=false, reportUnknownVariableType=false, reportUnusedImport=false

from push_to_poll_client import Nothing  # type: ignore[attr-defined]  # noqa: F401
from push_to_poll_client.listeners import Nothing as Nothing2  # type: ignore[attr-defined]  # noqa: F401
from push_to_poll_client.testing import Nothing as Nothing3  # type: ignore[attr-defined]  # noqa: F401
