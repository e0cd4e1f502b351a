"""Tests of Durable Streams."""
