"""Tests of README, pages and examples."""
