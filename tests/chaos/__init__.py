"""Tests with killed processes and failing networks: nothing is lost."""
