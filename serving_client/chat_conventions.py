"""Fields in which chat templates read a message's reasoning, and the errors that templates raise."""

from __future__ import annotations

from jinja2 import TemplateError

# The field of a message that holds its reasoning; each template reads one of these names.
REASONING = ("reasoning_content", "reasoning", "thinking")
# What templates raise for a conversation that they do not take.
REFUSALS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
