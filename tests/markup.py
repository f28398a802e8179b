"""HTML for assertions that are not about the indentation of the templates."""

from __future__ import annotations

import re

from django.http import HttpResponse

BLOCKS = "article|dd|details|div|dl|dt|form|h[1-6]|li|ol|option|p|section|summary|table|tbody|td|th|thead|tr|ul"


def markup(response: HttpResponse) -> str:
    """Return the page on one line, without the white space beside blocks, which no browser shows."""
    text = re.sub(r"[ \n]+", " ", response.content.decode())
    return re.sub(rf" ?(</?(?:{BLOCKS})\b[^>]*>) ?", r"\1", text)
