"""Processes that are killed and networks that fail: nothing is lost."""
