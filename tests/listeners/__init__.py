"""Tests of listeners, webhooks and subscriptions."""
