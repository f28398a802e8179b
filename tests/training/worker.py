"""A gpu worker as a process of its own, on a test's database: `python -m tests.training.worker DATABASE`."""

from __future__ import annotations

import sys

import django
from django.conf import settings


def main(database: str) -> None:
    django.setup()
    settings.DATABASES["default"]["NAME"] = database
    from training.worker.runner import work

    work()


if __name__ == "__main__":
    main(*sys.argv[1:])
