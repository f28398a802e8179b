"""Formats that Django's own pages use in place of its American ones; `moment` writes those of our templates."""

from __future__ import annotations

DATE_FORMAT = SHORT_DATE_FORMAT = "j M Y"
DATETIME_FORMAT = SHORT_DATETIME_FORMAT = "j M Y, H:i e"
TIME_FORMAT = "H:i e"
