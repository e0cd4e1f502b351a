"""The parts of `WebhookListener`: requests, limits, verification, routing."""
