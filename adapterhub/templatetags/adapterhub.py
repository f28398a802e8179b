"""Template tags and filters: status badges, readable numbers and times, the audit history, sortable columns."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django import template
from django.contrib.humanize.templatetags.humanize import naturaltime
from django.db.models import Model
from django.utils.dateformat import format as date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from adapterhub.audit.models import AuditEvent
from adapterhub.audit.sentences import actor_in_words
from adapterhub.core import counts, durations
from adapterhub.core.glossary import WORDS
from adapterhub.core.method_names import method_name

register = template.Library()
register.filter("method_name", method_name)
register.filter("actor", actor_in_words)
SIGN_INS = {"session": "password", "oidc": "single sign-on", "system": "the system itself"}
LATEST = 20
TONES = {
    "good": (
        "✓",
        {
            "ready",
            "succeeded",
            "promoted",
            "healthy",
            "intact",
            "live",
            "delivered",
            "approved",
            "used",
            "reviewed",
            "serves",
            "fits",
            "good",
            "done",
            "matches",
        },
    ),
    "bad": (
        "✕",
        {
            "failed",
            "rejected",
            "unreachable",
            "broken",
            "cannot",
            "will not fit",
            "bad",
            "fault",
            "differs",
            "no effect",
        },
    ),
    "busy": (
        "↻",
        {
            "queued",
            "next",
            "running",
            "stopping",
            "checking",
            "loading",
            "awaiting approval",
            "pending",
            "drifts",
            "glass broken",
            "sample too small",
            "tight",
            "serves after export",
            "notice",
        },
    ),
    "still": ("■", {"cancelled", "archived", "paused", "draft", "discarded", "rolled back", "lapsed", "unservable"}),
}


VERDICTS = {
    "follow_plan": "stable plan",
    "uniform_as_good": "uniform is as good here",
    "sample_too_small": "sample too small",
    "race_won": "won the race",
    "no_difference": "no difference",
    "unrivalled": "no rival",
}


@register.inclusion_tag("components/badge.html")
def badge(word: object) -> dict[str, str]:
    """Return a status' colour, shape and words for the template of a badge; an unknown status gets the neutral one."""
    text = str(word).lower().replace("_", " ")
    for tone, (shape, names) in TONES.items():
        if text in names:
            return {"tone": tone, "shape": shape, "word": text}
    return {"tone": "still", "shape": "•", "word": text}


@register.filter
def short(digest: str) -> str:
    """Return the first 12 characters of a digest."""
    return digest[:12]


@register.filter
def with_code(text: str) -> SafeString:
    """Return the text as HTML: what stands between backticks is code, and everything is escaped."""
    parts = str(text).split("`")
    # An odd last backtick has no partner: it is a character like others.
    if len(parts) % 2 == 0:
        parts[-2:] = [f"{parts[-2]}`{parts[-1]}"]
    pieces = (format_html("<code>{}</code>", part) if place % 2 else part for place, part in enumerate(parts))
    return format_html_join("", "{}", ((piece,) for piece in pieces))


@register.filter
def sign_in(method: str) -> str:
    """Return a method of signing in, such as `oidc`, in words: `single sign-on`; an unknown method as it is."""
    return SIGN_INS.get(method, method)


@register.filter
def is_mapping(value: object) -> bool:
    """Return True for a dictionary."""
    return isinstance(value, dict)


@register.filter
def is_sequence(value: object) -> bool:
    """Return True for a list."""
    return isinstance(value, list)


@register.filter
def by_name(mapping: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the pairs of a mapping in alphabetical order; the database keeps them by the length of the name."""
    return sorted(mapping.items())


@register.filter
def item(mapping: dict[str, Any], key: str) -> Any:
    """Return mapping[key]; None when the key is missing."""
    return mapping.get(key)


@register.filter
def item_of(mapping: Any, key: str) -> Any:
    """Return mapping[key]; None when the key is missing or the mapping is empty or None."""
    return mapping.get(key) if mapping else None


@register.filter
def in_words(verdict: str) -> str:
    """Return a rank analysis' verdict in words. Raises KeyError for an unknown one."""
    return VERDICTS[verdict]


@register.filter
def percent(share: float) -> str:
    """Return a fraction as a percentage with three significant digits: 0.0123 as 1.23 %."""
    return f"{100 * share:.3g} %"


@register.filter
def listed(value: Any) -> str:
    """Return a list joined with commas; any other value as text with spaces in place of underscores."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if isinstance(value, list) else text.replace("_", " ")


@register.filter
def as_told(value: Any) -> str:
    """Return a value of the audit trail or a configuration as text.

    A float has six significant digits, text stays as it is, and anything else is JSON.
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@register.filter
def is_trained(message: dict[str, Any], row: dict[str, Any]) -> bool:
    """Return True if the loss counts this message of a dataset's row.

    It counts those of the assistant, unless the message or the row has the weight 0.
    """
    return message["role"] == "assistant" and 0 not in (message.get("weight"), row.get("weight"))


@register.filter
def calls(message: dict[str, Any]) -> str:
    """Return the tools that a chat message calls, each as ` name(arguments)` after a space; empty without calls."""
    functions = [call["function"] for call in message.get("tool_calls") or []]
    return "".join(f" {function.get('name', '')}({function.get('arguments', '')})" for function in functions)


@register.filter
def duration(seconds: float) -> str:
    """Return seconds as a readable duration: 45 s, 12 min, 3 h 20 min."""
    return durations.in_words(seconds)


@register.filter
def counted(number: object, noun: str) -> str:
    """Return the number with its noun, in the plural unless it is 1; an irregular plural follows after a comma.

    A value that is no number, such as None in an old record, gives "an unknown number of" and the plural.
    """
    if isinstance(number, int | float | Decimal):
        return counts.counted(number, *noun.split(","))
    return f"an unknown number of {noun.split(',')[1] if ',' in noun else counts.in_plural(noun)}"


@register.simple_block_tag
def sentence(content: str) -> str:
    """Return the block's text on one line, for an attribute that is too long for one line of a template.

    It is marked as safe: the block has escaped its variables.
    """
    # The block has escaped its variables.
    return mark_safe(re.sub(r"[ \n]+", " ", content).strip(" "))  # noqa: S308  # nosec


@register.inclusion_tag("audit/_history.html")
def history(record: Model) -> dict[str, Any]:
    """Return the latest LATEST audit events of an object as `events`, newest first, without mere reads."""
    return {"events": AuditEvent.objects.about(record).without_reads().defer("canonical")[:LATEST]}


INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:\+00:00|Z)")
SHAPES = {"minute": "j M Y, H:i e", "second": "j M Y, H:i:s e", "day": "j M Y", "clock": "H:i e"}


@register.simple_tag
def moment(at: datetime, shape: str = "minute") -> str:
    """Return a <time> element with the time, in UTC; the page's script converts it to the reader's time zone.

    `shape` is `minute`, `second`, `day` or `clock` (hours and minutes alone).
    """
    text = date_format(at, SHAPES[shape])
    return format_html('<time datetime="{}" data-shape="{}">{}</time>', at.isoformat(), shape, text)


@register.filter
def in_utc(at: datetime, shape: str = "second") -> str:
    """Return the time in UTC with its zone, as text that no script converts: for evidence, and inside attributes.

    `shape` is `minute`, `second`, `day` (the date alone, without the zone) or `clock` (hours and minutes alone).
    """
    return str(date_format(at.astimezone(UTC), SHAPES[shape]))


@register.filter
def plainly(fact: Any) -> str:
    """Return a fact of a record as text: `none` for None and "", yes or no for a boolean, an ISO time readable in UTC.

    Anything else is returned as str() gives it.
    """
    if fact is None or fact == "":
        return "none"
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, str) and INSTANT.fullmatch(fact):
        return in_utc(datetime.fromisoformat(fact))
    return str(fact)


@register.simple_tag
def ago(at: datetime) -> str:
    """Return a <time> element that says how long ago the moment was, which the page's script keeps true."""
    return format_html('<time datetime="{}" data-shape="ago">{}</time>', at.isoformat(), naturaltime(at))


@register.inclusion_tag("components/words.html")
def explain(names: str) -> dict[str, Any]:
    """Return the words of the glossary with these names, separated by spaces, for the help beside their first use.

    Raises KeyError for a name that the glossary lacks.
    """
    return {"words": [(name, WORDS[name]) for name in names.split()]}


@register.inclusion_tag("components/sort.html", takes_context=True)
def sort(context: dict[str, Any], word: str, label: str) -> dict[str, Any]:
    """Return the context of a column header whose link sorts by the column `word`.

    If the list is sorted by it in ascending order, the link reverses the order.
    """
    now = context["listing"].sort
    direction = {word: "up", f"-{word}": "down"}.get(now, "")
    return {
        "request": context["request"],
        "label": label,
        "direction": direction,
        "next": f"-{word}" if direction == "up" else word,
    }
