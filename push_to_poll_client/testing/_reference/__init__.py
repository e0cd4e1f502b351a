"""The reference server: a feed, its push channels, and faults on command."""
