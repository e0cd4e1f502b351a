"""The settings that the example needs: one app, and one SQLite file."""

import os
from pathlib import Path

DATA = Path(os.environ.get("ORDERS_DIR", Path(__file__).parent))

SECRET_KEY = "only this example has it"  # noqa: S105  # nothing is signed here
INSTALLED_APPS = ["orders"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA / "shop.db",
        # Lock the file when a transaction begins. Otherwise one that reads first may fail at its first write.
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }
}
CONSUMER_STATE = DATA / "consumer.db"
