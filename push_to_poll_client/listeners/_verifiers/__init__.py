"""The rooms behind `verifiers.py`: what a request has to carry that only the server can have written."""
