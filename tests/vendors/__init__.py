"""Simulated servers of vendors."""
