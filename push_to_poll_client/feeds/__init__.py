"""What to ask: one file for each kind of feed."""
