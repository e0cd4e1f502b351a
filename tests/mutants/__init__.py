"""Bugs that are planted on purpose, and the tests that must see them."""
