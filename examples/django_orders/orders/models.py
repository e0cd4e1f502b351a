"""Orders, and the keys of the messages that they came from."""

from django.db import models


class Order(models.Model):
    """One order of the shop."""

    number = models.CharField(max_length=40)
    customer = models.CharField(max_length=200)
    cents = models.IntegerField()


class ProcessedMessage(models.Model):
    """The dedupe key of a message whose order is stored."""

    key = models.CharField(max_length=500, unique=True)
    at = models.DateTimeField(auto_now_add=True, db_index=True)  # for deleting old keys
