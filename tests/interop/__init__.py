"""Tests with servers and libraries that others wrote."""
