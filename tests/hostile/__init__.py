"""Hostile servers and strangers."""
