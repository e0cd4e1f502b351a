"""Tests of the public fakes and suites."""
