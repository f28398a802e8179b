"""Patterns that attack whoever compiles them."""

from __future__ import annotations

# Each is short and unfolds to a program of gigabytes, or backtracks without end.
UNFOLDING = [
    "(?:(?:(?:a{999}){999}){999})",
    "((((((a{9}){9}){9}){9}){9}){9})",
    "(?:a{0,999}){0,999}",
    "(" * 400,
    r"(x{1,400})(?:\1{1,999}){1,999}",
    "(?=(a+))b",
]
