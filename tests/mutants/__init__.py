"""Planted bugs, and the tests that must detect them."""
