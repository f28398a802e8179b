"""Process boundary of a program: it turns a failure into one error event, one line on stderr and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

from training.lm.events import Events

SPACE = ("No space left on device", "os error 28", "PytorchStreamWriter failed writing")
MEMORY = ("out of memory", "can't allocate memory")


class BadInput(ValueError):
    """Raised when the program's input cannot be used; the message names the field and the fix."""


class Diverged(ValueError):
    """Raised when a training's loss is not finite, or its model is worse than before; the message gives the numbers."""


def guarded(events: Events, work: Callable[[], None]) -> int:
    """Run the work and return the exit status: 0 for success, 2 for bad input, 1 for other errors.

    Errors are reported by `ended`. SystemExit passes through.
    """
    try:
        work()
    except BadInput as error:
        return ended(events, "bad_input", str(error))
    except Exception as error:  # noqa: BLE001 - the process boundary
        # The supervisor needs the event, and the log needs the traceback.
        traceback.print_exc()
        return ended(events, code_of(error), message_of(error))
    return 0


def last(status: int) -> int:
    """Return the status in a single process; in one of several, end the process at once with it by os._exit.

    There the destructor of gloo's process group would wait, holding Python's lock, for a thread that may need that lock
    (torch 2.13).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def ended(events: Events, code: str, message: str) -> int:
    """Report the error on standard error and as an event; return the exit status, 2 for bad input and 1 otherwise."""
    sys.stderr.write(message + "\n")
    try:
        events.write("error", code=code, message=message)
    except OSError as error:
        sys.stderr.write(f"The event could not be written: {error}\n")
    return 2 if code == "bad_input" else 1


def code_of(error: Exception) -> str:
    """Return the code of an error: diverged, gpu_oom, no_space or internal.

    The error's text is searched, too, because libraries wrap faults in types of their own.
    """
    text = str(error)
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, MemoryError) or any(sign in text for sign in MEMORY):
        return "gpu_oom"
    if getattr(error, "errno", None) == errno.ENOSPC or any(sign in text for sign in SPACE):
        return "no_space"
    return "internal"


def message_of(error: Exception) -> str:
    """Return advice for an error whose code has some, else its type and message."""
    advice = {
        "gpu_oom": "Memory ran out: lower batch_size or max_length.",
        "no_space": "The disk is full: free some space, then resume.",
        "diverged": str(error),
    }
    return advice.get(code_of(error)) or f"{type(error).__name__}: {error}"
