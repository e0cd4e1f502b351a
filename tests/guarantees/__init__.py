"""Tests of the guarantees, one file for each."""
