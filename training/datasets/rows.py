"""Rows of a dataset: recognition of a record's form, and its conversion to a normal form. No database, no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from training.datasets import conversations, preferences
from training.datasets.conversations import ASSISTANT, SYSTEM
from training.datasets.line_errors import BadLine, json_object, number_text, text_in
from training.datasets.record_forms import FORMS, SHARED_COLUMNS, TALKS, Form, Record, Row, is_blank, unknown_form
from training.datasets.split import text_hash

# What a mapping may name; the first are the forms' own, the last say how any row is used.
FORM_COLUMNS = (
    "prompt",
    "completion",
    "messages",
    "text",
    "chosen",
    "rejected",
    "label",
    "instruction",
    "input",
    "output",
)
USE_COLUMNS = ("system", "tools", "document", "source", "weight", "split")
COLUMNS = (*FORM_COLUMNS, *USE_COLUMNS)
# Other projects' names for columns that say how a row is used.
OTHER_NAMES = {
    "system": ("system_prompt", "system_message", "system_instruction", "systemInstruction"),
    "weight": ("loss_weight", "sample_weight", "loss_scale"),
    "label": ("kto_tag",),
}
HELD_OUT_WORDS = ("test", "validation", "valid", "val", "eval", "evaluation", "dev", "held_out", "heldout")
TRAIN_WORDS = ("train", "training")
# UTF-8 that was read as Windows Western: two letters in place of an accented one, three in place of a quote.
MOJIBAKE = re.compile("\u00c3[\u0080-\u00bf]|\u00e2\u20ac[\u2122\u0153\u009d\u00a6\u201c\u201d]")
# Control tokens of the chat templates in use.
CONTROL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<\uff5c[^<>\s]{1,40}\uff5c>|<eos>|<bos>"
)


@dataclass(frozen=True)
class Reading:
    """A row in normal form, with the recognised form, the columns that nothing reads, and notices for people.

    `held_out` is the split that the row names: True for held-out rows, False for training, None if it names none.
    """

    row: Row
    form: str
    held_out: bool | None = None
    unused: frozenset[str] = field(default_factory=frozenset)
    notices: frozenset[str] = field(default_factory=frozenset)


def parse_row(raw: bytes) -> Row:
    """Parse a line of JSON of any known form into a row of normal form.

    Raises BadLine if it is no JSON object, has no known form, or is not valid in its form.
    """
    return reading(json_object(raw)).row


def renamed(row: Record, mapping: dict[str, str]) -> Record:
    """Return the record with its columns renamed by `mapping` (our name -> the file's).

    Unmapped columns that forms read are dropped; those that say how a row is used keep their names, so that a mapping
    drops no weight, no tools and no label. Raises BadLine for a missing column.
    """
    for theirs in mapping.values():
        if theirs not in row:
            raise BadLine(theirs, "missing_column", f"There is no column {theirs!r}, which the mapping names.")
    forms = {*FORM_COLUMNS, *SHARED_COLUMNS} - {"label"}
    hidden = set(mapping.values()) | (forms if forms & set(mapping) else set())
    rest = {name: value for name, value in row.items() if name not in hidden}
    return {**rest, **{ours: row[theirs] for ours, theirs in mapping.items()}}


def with_other_names(mapping: dict[str, str], record: Record) -> dict[str, str]:
    """Return the mapping (our name -> the file's), extended by the columns of the record that OTHER_NAMES lists.

    A column of ours that the record has or that is mapped already is not added.
    """
    known = {*record, *mapping}
    implied = {
        ours: theirs
        for ours, others in OTHER_NAMES.items()
        for theirs in others
        if theirs in record and ours not in known and theirs not in mapping.values()
        # A plain text has no system turn: the column is no part of it, and is told as unused.
        if not (ours == "system" and "text" in known)
    }
    return {**mapping, **implied}


def reading(record: Record, mapping: dict[str, str] | None = None, *, escape: bool = False) -> Reading:
    """Recognise a record's form and return the record in normal form.

    `mapping` names the file's column for each of our columns that the file calls otherwise; None for none. With
    `escape`, control tokens in its prompts are made harmless. Raises BadLine for a record that is not valid in its
    form, and for one of no known form, with the mapping that its columns suggest, if any.
    """
    mapping = with_other_names(mapping or {}, record)
    renamed_record = renamed(record, mapping)
    named = {name: value for name, value in renamed_record.items() if not is_absent(name, value)}
    form = next((form for form in FORMS if form.fits(named)), None)
    if form is None:
        raise unknown_form(named)
    refuse_media(named)
    row = form.read(named) | use_of(named)
    row = escaped(row) if escape else row
    notices = frozenset(notices_of(named, row, form))
    return Reading(row, form.name, held_out_by(named), unused_of(record, named, form, mapping), notices)


def refuse_media(named: Record) -> None:
    """Raise BadLine for a column of images or sound that is not empty: the text alone would mean something else."""
    for column in MEDIA:
        if not is_blank(named.get(column)) and named.get(column) is not None:
            raise BadLine(column, "not_text", f"The row has {column}, and only text is trained: leave such rows out.")


def unused_of(record: Record, named: Record, form: Form, mapping: dict[str, str]) -> frozenset[str]:
    """Return the names of the file's columns that are not empty and that nothing reads."""
    columns = form.columns if isinstance(form.columns, tuple) else form.columns(named)
    used = {*columns, *USE_COLUMNS} & set(named)
    read = {mapping.get(name, name) for name in used}
    return frozenset(
        name
        for name, value in record.items()
        if name not in read and not is_absent(name, value) and not is_blank(value)
    )


# What a model of text cannot see or hear.
MEDIA = ("image", "images", "audio", "audios", "video", "videos")


# What databases and tables write into an empty cell.
EMPTY_WORDS = ("nan", "null", "none", "<na>", "\\n")


def is_absent(name: str, value: Any) -> bool:
    """Return True for null and NaN, and for an empty cell of a column that a row need not have.

    In columns that say how a row is used, words such as "nan" and "null" are empty, too.
    """
    if isinstance(value, float) and math.isnan(value):
        # An empty cell of a table of numbers.
        return True
    if isinstance(value, str) and name in USE_COLUMNS and value.strip().casefold() in EMPTY_WORDS:
        return True
    return value is None or (value == "" and name not in ("prompt", "completion", "text", "instruction", "output"))


def use_of(named: Record) -> Row:
    """Return the record's columns document, source and weight, as far as it has them; a weight of 1 is left out.

    Raises BadLine for a document or source that is not text or a whole number, and for a weight outside 0 to 1.
    """
    used: Row = {}
    for column in ("document", "source"):
        value = number_text(named.get(column))
        if value is not None and value != "":
            used[column] = text_in({column: value}, column)
    if "weight" in named and (weight := conversations.loss_weight(named["weight"], "weight")) != 1:
        used["weight"] = weight
    return used


def held_out_by(named: Record) -> bool | None:
    """Return True for a held-out row and False for one to train on, by the column `split`; None without it.

    Raises BadLine for another word.
    """
    word = named.get("split")
    if word is None or word == "":
        return None
    plain = str(word).strip().casefold()
    if plain in HELD_OUT_WORDS or plain in TRAIN_WORDS:
        return plain in HELD_OUT_WORDS
    raise BadLine("split", "bad_split", f"split is {word!r}; it is train, validation or test.")


def notices_of(named: Record, row: Row, form: Form) -> Iterable[str]:
    """Yield notices for people on a row that is read nevertheless.

    They are on empty system turns, fields of messages that nothing reads, control tokens, calls without a name or with
    arguments that are not JSON of an object, and texts that look as if they were read in a wrong encoding.
    """
    container: Any = next((named[name] for name in SHARED_COLUMNS if name in named), None)
    if form.name in TALKS and isinstance(container, list) and any(map(is_empty_system, container)):
        yield "an empty system turn was left out"
    for name in sorted({name for talk in talks_in(named) for name in unread_fields(talk)}):
        yield f"the field {name!r} of messages is not used"
    yield from control_tokens_in(row)
    turns = [*row.get("messages", ()), *preferences.turns_in(row)]
    calls = [call for turn in turns for call in turn.get("tool_calls", ())]
    if any(not call["function"]["name"] for call in calls):
        yield "a function call has no name"
    if any(isinstance(call["function"].get("arguments"), str) for call in calls):
        yield "the arguments of a call are not JSON of an object, and are trained as they are"
    if any(MOJIBAKE.search(text) for text in texts_of(row)):
        yield "a text looks as if it was read in a wrong encoding (as \u00c3\u00a9 for \u00e9)"


def talks_in(named: Record) -> Iterable[Any]:
    """Yield what may be a list of messages in a record, in any column, and in the object `input` of OpenAI's pairs."""
    yield from named.values()
    yield from named["input"].values() if isinstance(named.get("input"), dict) else ()
    yield from ([value] for name, value in named.items() if name in preferences.ANSWERS and isinstance(value, dict))


def unread_fields(value: Any) -> Iterable[str]:
    """Yield the names of the fields that nothing reads, once for each message of the conversation that has one.

    Among them are a name and a weight of system and user messages. Anything but a list of objects yields nothing.
    """
    for message in value if isinstance(value, list) else ():
        if isinstance(message, dict):
            yield from (name for name, each in message.items() if each is not None and name not in conversations.KNOWN)
            yield from unread_of_parts(
                next((message[name] for name in conversations.CONTENTS if name in message), None)
            )
            if conversations.role_of(message.get("from", message.get("role"))) in (SYSTEM, conversations.USER):
                yield from (
                    name for name in ("name", *conversations.TRAINED) if message.get(name) not in (None, 0, "0", "")
                )


def unread_of_parts(content: Any) -> Iterable[str]:
    """Yield the names of the fields of a content's parts that are neither type nor text."""
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict):
            yield from (f"content.{name}" for name, each in part.items() if each and name not in ("type", "text"))


def texts_of(row: Row) -> Iterable[str]:
    """Yield the texts of a row."""
    yield from (row[name] for name in ("prompt", "text", *preferences.ANSWERS) if isinstance(row.get(name), str))
    yield from (turn["content"] for turn in (*row.get("messages", ()), *preferences.turns_in(row)))


def control_tokens_in(row: Row) -> Iterable[str]:
    """Yield a notice if a prompt, and one if the trained text, has what a tokenizer would read as a control token."""
    talk = [*row.get("messages", ()), *preferences.turns_in(row)]
    prompts = [turn["content"] for turn in talk if turn["role"] != ASSISTANT]
    prompts += [row["prompt"]] if isinstance(row.get("prompt"), str) else []
    answered = [turn["content"] for turn in talk if turn["role"] == ASSISTANT]
    answered += [row["text"]] if "text" in row else preferences.answers_in(row)
    if match := next(filter(None, map(CONTROL.search, prompts)), None):
        yield f"a prompt holds {match[0]}, which a tokenizer may read as a control token"
    if match := next(filter(None, map(CONTROL.search, answered)), None):
        yield f"the trained text holds {match[0]} already: an end token at its end is not added a second time"


def escaped(row: Row) -> Row:
    """Return the row with a space in each control token of its prompts, so that no tokenizer reads it as one."""
    if isinstance(row.get("prompt"), str):
        row = {**row, "prompt": spaced(row["prompt"])}
    talks = ("messages", "prompt", *preferences.ANSWERS)
    return {**row, **{name: escaped_turns(row[name]) for name in talks if isinstance(row.get(name), list)}}


def escaped_turns(turns: list[Record]) -> list[Record]:
    """Return the turns with a space in each control token of all turns but the assistant's."""
    return [turn if turn["role"] == ASSISTANT else {**turn, "content": spaced(turn["content"])} for turn in turns]


def spaced(text: str) -> str:
    """Return the text with a space after the first character of every control token."""
    return CONTROL.sub(lambda token: f"{token[0][0]} {token[0][1:]}", text)


def is_empty_system(message: Any) -> bool:
    """Return True for a system message without text."""
    role = message.get("role", message.get("from")) if isinstance(message, dict) else None
    empty = conversations.role_of(role) == SYSTEM
    return empty and not str(message.get("content", message.get("value")) or "").strip()


def line_of(row: Row) -> str:
    """Return the row as a line of JSON with sorted keys: equal rows give equal lines."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def content_hash(row: Row) -> int:
    """Return a 64-bit hash of a row without its document, source, weight and split.

    It ignores case, white space and Unicode form.
    """
    words = json.dumps(
        {name: row[name] for name in row if name not in USE_COLUMNS[2:]}, ensure_ascii=False, sort_keys=True
    )
    return text_hash(words.replace("\\n", " ").replace("\\t", " "))
