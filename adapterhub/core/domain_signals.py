"""Signals of what happens in REST, for those above it."""

from __future__ import annotations

from django.dispatch import Signal

# `by`, `path`, `code`: a caller was refused a request.
access_refused = Signal()
