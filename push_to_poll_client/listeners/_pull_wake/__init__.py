"""The rooms behind `pull_wake.py`."""
