"""Tests with servers and libraries of other authors."""
