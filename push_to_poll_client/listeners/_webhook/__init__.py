"""The rooms behind `webhook.py`: what asks, who may, what it says, and whom it wakes."""
