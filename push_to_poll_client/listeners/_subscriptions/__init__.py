"""The rooms behind `subscriptions.py`: what makes a server push, and keeps it doing so."""
