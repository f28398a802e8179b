"""Control loops that a test may kill: one is forked for each line of the input.

    python -m tests.registry.serving.forked_loop DATABASE

A fork of a process that has imported everything starts in milliseconds. It tells the process id, and `ended` after it.
"""

from __future__ import annotations

import os
import sys

import django
from django.conf import settings


def main(database: str) -> None:
    django.setup()
    settings.DATABASES["default"]["NAME"] = database
    from registry.serving.reconciler import reconcile

    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            reconcile()
            os._exit(0)
        tell(str(pid))
        os.waitpid(pid, 0)
        tell("ended")


def tell(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
