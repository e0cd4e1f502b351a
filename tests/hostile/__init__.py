"""Servers and strangers that attack."""
