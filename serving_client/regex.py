"""Regular expressions that users write: compiled by RE2, which is linear in the text and bounded in memory. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TypeAlias

import re2

Pattern: TypeAlias = re2._Regexp
LONGEST = 500
# RE2 counts repetitions when it compiles: what would need more memory than this is refused.
MEMORY_BYTES = 2**20
REPEATED = re.compile(r"\{(\d{0,9})(?:,(\d{0,9}))?\}")
# A class, an escape, or a single character.
ATOM = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*+\]|\\.|[^\[\\]", re.DOTALL)
MANY = 10**9


class BadPattern(ValueError):
    """The pattern is too long, too large, or uses what a linear engine lacks; the message says which."""


@lru_cache(maxsize=256)
def compiled(pattern: str, longest: int = LONGEST) -> Pattern:
    """Compile a pattern for RE2. Raises BadPattern if it is invalid, over `longest` characters, or too large."""
    if len(pattern) > longest:
        raise BadPattern(f"at most {longest} characters")
    options = re2.Options()
    options.max_mem, options.log_errors = MEMORY_BYTES, False
    try:
        return re2.compile(pattern, options)
    except UnicodeEncodeError:
        raise BadPattern("half of a surrogate pair is not a character") from None
    except re2.error as error:
        raise BadPattern(reason(error)) from None


def reason(error: re2.error) -> str:
    """Return RE2's error as text, with a hint where it lacks the feature: look-around and back references."""
    text: str = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error.args[0])
    is_feature = text.startswith(("invalid perl operator", "invalid escape sequence"))
    return f"{text} (RE2's syntax: no look-around, no back references)" if is_feature else text


def contains(pattern: str, text: str) -> bool:
    """Return True if the text holds a match of the pattern. Raises BadPattern for one that `compiled` refuses."""
    return compiled(pattern).search(text) is not None


def unfolded(pattern: str) -> int:
    """Return an upper estimate of a pattern's size with its repetitions written out, as other engines write them.

    Each character counts one, and {n,m} multiplies the character, class or group before it by the larger bound. MANY
    stands for any larger size and for a pattern that cannot be read.
    """
    groups, last, place = [0], 0, 0
    while place < len(pattern):
        letter = pattern[place]
        if letter == "(":
            groups.append(0)
            last = 0
        elif letter == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif bounds := REPEATED.match(pattern, place):
            times = min(max(int(bounds[1] or 0), int(bounds[2] or 0), 1), MANY)
            groups[-1] += last * (times - 1)
            last *= times
            place = bounds.end()
            continue
        else:
            atom = ATOM.match(pattern, place)
            # A class without an end is no pattern: what follows is not searched for one again and again.
            if atom is None:
                return MANY
            place, last = atom.end(), 1
            groups[-1] += 1
            continue
        place += 1
    return min(sum(groups), MANY)
