"""Tests of the core: schedule, polls, processing, progress."""
