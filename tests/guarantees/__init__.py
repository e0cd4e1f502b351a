"""The guarantees, a file for each: their specification as tests."""
