"""Rows of a dataset: the form in which a record is recognised, and its normal form. No database, no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from training.datasets import conversations
from training.datasets.conversations import ASSISTANT, SYSTEM, conversation, require_answer
from training.datasets.lines import BadLine, json_object, number_text, text_in
from training.datasets.split import text_hash

Row = dict[str, Any]
Record = dict[str, Any]

# What a mapping may name; the first are the forms' own, the last say how any row is used.
FORM_COLUMNS = ("prompt", "completion", "messages", "text", "chosen", "rejected", "instruction", "input", "output")
USE_COLUMNS = ("system", "tools", "document", "source", "weight", "split")
COLUMNS = (*FORM_COLUMNS, *USE_COLUMNS)
SHARED_COLUMNS = ("messages", "conversations", "conversation")
HELD_OUT_WORDS = ("test", "validation", "valid", "val", "eval", "evaluation", "dev", "held_out", "heldout")
TRAIN_WORDS = ("train", "training")
# Other names for a prompt and its completion, in the order in which they are proposed.
PROPOSED = (
    ("question", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("prompt", "response"),
    ("input", "output"),
    ("user", "assistant"),
    ("question", "response"),
    ("problem", "solution"),
    ("source", "target"),
    ("q", "a"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("input", "target"),
)
# Other names for the text that a question is about.
CONTEXTS = ("context", "input", "passage")


# Control tokens of the chat templates in use.
CONTROL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<\uff5c[^<>\s]{1,40}\uff5c>|<eos>|<bos>"
)


@dataclass(frozen=True)
class Reading:
    """A row in normal form, the form in which it was recognised, the split that it names, and columns left unused."""

    row: Row
    form: str
    held_out: bool | None = None
    unused: frozenset[str] = field(default_factory=frozenset)
    notices: frozenset[str] = field(default_factory=frozenset)


def parse_row(raw: bytes) -> Row:
    """Parse one JSON object of any known form into its normal form. Raises BadLine."""
    return reading(json_object(raw)).row


def renamed(row: Record, mapping: dict[str, str]) -> Record:
    """Rename the columns by `mapping` (our name -> the file's). Raises BadLine for a missing column.

    Columns that say how a row is used keep their own names, so that a mapping drops no weight and no tools.
    """
    for theirs in mapping.values():
        if theirs not in row:
            raise BadLine(theirs, "missing_column", f"There is no column {theirs!r}, which the mapping names.")
    forms = {*FORM_COLUMNS, *SHARED_COLUMNS}
    hidden = set(mapping.values()) | (forms if forms & set(mapping) else set())
    rest = {name: value for name, value in row.items() if name not in hidden}
    return {**rest, **{ours: row[theirs] for ours, theirs in mapping.items()}}


def reading(record: Record, mapping: dict[str, str] | None = None, *, escape: bool = False) -> Reading:
    """Recognise a record and return its normal form, with `escape` without control tokens in its prompts.

    Raises BadLine, with the mapping that would work.
    """
    renamed_record = renamed(record, mapping or {})
    named = {name: value for name, value in renamed_record.items() if not is_absent(name, value)}
    form = next((form for form in FORMS if form.fits(named)), None)
    if form is None:
        raise unknown_form(named)
    row = form.read(named) | use_of(named)
    row = escaped(row) if escape else row
    notices = frozenset(notices_of(named, row, form))
    return Reading(row, form.name, held_out_by(named), unused_of(record, named, form, mapping or {}), notices)


def unused_of(record: Record, named: Record, form: Form, mapping: dict[str, str]) -> frozenset[str]:
    """Return the file's columns that hold something and are not read."""
    used = {*form.columns, *USE_COLUMNS, *UNUSED_IN_SILENCE} & set(named)
    read = {mapping.get(name, name) for name in used}
    return frozenset(
        name for name, value in record.items() if name not in read and value is not None and not is_blank(value)
    )


# Facts of a request that change nothing in what an answer should be.
UNUSED_IN_SILENCE = ("parallel_tool_calls",)


def is_absent(name: str, value: Any) -> bool:
    """Return True for null, and for an empty cell of a column that a row need not have."""
    return value is None or (value == "" and name not in ("prompt", "completion", "text", "instruction", "output"))


def is_blank(value: Any) -> bool:
    """Return True for an empty text, list or object."""
    return value in ("", [], {})


def use_of(named: Record) -> Row:
    """Return what the columns document, source and weight say. Raises BadLine."""
    used: Row = {}
    for column in ("document", "source"):
        value = number_text(named.get(column))
        if value is not None and value != "":
            used[column] = text_in({column: value}, column)
    if "weight" in named and (weight := conversations.loss_weight(named["weight"], "weight")) != 1:
        used["weight"] = weight
    return used


def held_out_by(named: Record) -> bool | None:
    """Return the choice of the column `split`: True for held-out rows; None without one. Raises BadLine."""
    word = named.get("split")
    if word is None or word == "":
        return None
    plain = str(word).strip().casefold()
    if plain in HELD_OUT_WORDS or plain in TRAIN_WORDS:
        return plain in HELD_OUT_WORDS
    raise BadLine("split", "bad_split", f"split is {word!r}; it is train, validation or test.")


def notices_of(named: Record, row: Row, form: Form) -> Iterable[str]:
    """Yield what a person should know of a row that is read nevertheless."""
    container: Any = next((named[name] for name in SHARED_COLUMNS if name in named), None)
    if form.name in TALKS and isinstance(container, list):
        if any(is_empty_system(message) for message in container):
            yield "an empty system turn was left out"
        for name in sorted(set(conversations.unread_fields(container))):
            yield f"the field {name!r} of messages is not used"
    yield from control_tokens_in(row)
    calls = [call for turn in row.get("messages", ()) for call in turn.get("tool_calls", ())]
    if any(not call["function"]["name"] for call in calls):
        yield "a function call has no name"


def control_tokens_in(row: Row) -> Iterable[str]:
    """Yield notices of text that a tokenizer reads as control tokens, in a prompt or in what is trained."""
    talk = row.get("messages", ())
    prompts = [turn["content"] for turn in talk if turn["role"] != ASSISTANT]
    prompts += [row["prompt"]] if isinstance(row.get("prompt"), str) else []
    answered = [turn["content"] for turn in talk if turn["role"] == ASSISTANT]
    answered += [row[column] for column in ("completion", "text") if column in row]
    if match := next(filter(None, map(CONTROL.search, prompts)), None):
        yield f"a prompt holds {match[0]}, which a tokenizer may read as a control token"
    if match := next(filter(None, map(CONTROL.search, answered)), None):
        yield f"the trained text holds {match[0]} already: an end token at its end is not added a second time"


def escaped(row: Row) -> Row:
    """Return the row with a space in the control tokens of its prompts, so that no tokenizer reads them as such."""
    if isinstance(row.get("prompt"), str):
        row = {**row, "prompt": spaced(row["prompt"])}
    if "messages" in row:
        turns = row["messages"]
        row = {
            **row,
            "messages": [
                turn if turn["role"] == ASSISTANT else {**turn, "content": spaced(turn["content"])} for turn in turns
            ],
        }
    return row


def spaced(text: str) -> str:
    """Return the text with a space behind the first character of every control token."""
    return CONTROL.sub(lambda token: f"{token[0][0]} {token[0][1:]}", text)


def is_empty_system(message: Any) -> bool:
    """Return True for a system message without text."""
    role = message.get("role", message.get("from")) if isinstance(message, dict) else None
    empty = isinstance(role, str) and conversations.ROLES.get(role) == SYSTEM
    return empty and not str(message.get("content", message.get("value")) or "").strip()


@dataclass(frozen=True)
class Form:
    """A form of records: its name for people, the columns that it reads, how it is recognised, and how it is read."""

    name: str
    columns: tuple[str, ...]
    fits: Callable[[Record], bool]
    read: Callable[[Record], Row]


def has(*columns: str) -> Callable[[Record], bool]:
    """Return a test for records that have all these columns."""
    return lambda named: all(column in named for column in columns)


def any_of(*columns: str) -> Callable[[Record], bool]:
    """Return a test for records that have one of these columns."""
    return lambda named: any(column in named for column in columns)


def read_pretokenised(named: Record) -> Row:
    """Refuse a row of token numbers."""
    message = "The row is pre-tokenised (input_ids): its numbers fit one tokenizer alone. Upload the text instead."
    raise BadLine("input_ids", "pre_tokenised", message)


def read_unpaired(named: Record) -> Row:
    """Refuse a row that is marked good or bad."""
    message = (
        "The row is marked good or bad (label), for KTO, which is not trained here: keep the good rows, without label."
    )
    raise BadLine("label", "unpaired_preference", message)


def read_messages(named: Record) -> Row:
    """Read a conversation in OpenAI's or ShareGPT's spelling."""
    column = next(name for name in SHARED_COLUMNS if name in named)
    turns = with_system(conversation(named[column], column), named)
    require_answer(turns, column)
    return {"messages": turns} | tools_in(named)


def read_conversational(named: Record) -> Row:
    """Read TRL's conversational prompt and completion: the loss counts the completion alone."""
    before = [
        turn | ({"weight": 0} if turn["role"] == ASSISTANT else {}) for turn in conversation(named["prompt"], "prompt")
    ]
    answer = conversation(named["completion"], "completion")
    turns = with_system([*before, *answer], named)
    require_answer(turns, "completion")
    return {"messages": turns} | tools_in(named)


def with_system(turns: list[Record], named: Record) -> list[Record]:
    """Put the text of a column `system` before the turns. Raises BadLine when they have a system turn already."""
    system = named.get("system")
    if system is None or not str(system).strip():
        return turns
    if turns and turns[0]["role"] == SYSTEM:
        raise BadLine(
            "system", "two_systems", "There is a column system, and the messages begin with a system turn: keep one."
        )
    return [{"role": SYSTEM, "content": text_in(named, "system")}, *turns]


def tools_in(named: Record) -> Row:
    """Return {tools} where the record offers some. Raises BadLine."""
    tools = named.get("tools", named.get("functions"))
    definitions = conversations.tools_of(tools) if tools not in (None, "", []) else []
    return {"tools": definitions} if definitions else {}


def read_prompt(named: Record) -> Row:
    """Read a prompt and its completion, after the text of a column `system`."""
    refuse_tools(named)
    if "completion" not in named and proposed_mapping(named):
        raise unknown_form(named)
    prompt = text_in(named, "prompt")
    if "system" in named and str(named["system"]).strip():
        prompt = f"{text_in(named, 'system')}\n\n{prompt}"
    return {"prompt": prompt, "completion": text_in(named, "completion")}


def refuse_tools(named: Record) -> None:
    """Raise BadLine for tools that no conversation could be shown with."""
    for column in ("tools", "functions"):
        if named.get(column):
            raise BadLine(
                column, "tools_without_messages", f"{column} needs messages: a plain prompt cannot show tools."
            )


def read_text(named: Record) -> Row:
    """Read a plain text, all of which counts in the loss. Raises BadLine, also for tools or a system text."""
    refuse_tools(named)
    if str(named.get("system") or "").strip():
        raise BadLine("system", "system_without_messages", "A column system needs messages or prompts beside it.")
    return {"text": text_in(named, "text")}


def read_alpaca(named: Record) -> Row:
    """Build the prompt from system, instruction and input; earlier turns in `history` make it a conversation."""
    refuse_tools(named)
    parts = [text_in(named, "instruction"), *([text_in(named, "input")] if filled(named, "input") else [])]
    output = text_in(named, "output")
    if filled(named, "history"):
        history = [turn for pair in pairs_of(named["history"]) for turn in pair]
        turns = [*history, {"role": "user", "content": "\n\n".join(parts)}, {"role": ASSISTANT, "content": output}]
        return {"messages": with_system(turns, named)}
    system = [text_in(named, "system")] if filled(named, "system") else []
    return {"prompt": "\n\n".join([*system, *parts, ""]), "completion": output}


def filled(named: Record, column: str) -> bool:
    """Return True if the column holds more than white space."""
    return column in named and not is_blank(named[column]) and bool(str(named[column]).strip())


def pairs_of(history: Any) -> Iterable[list[Record]]:
    """Yield the turns of earlier questions and answers. Raises BadLine."""
    for pair in history if isinstance(history, list) else [None]:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(text, str) and text.strip() for text in pair)
        ):
            raise BadLine("history", "bad_history", "history is no list of [question, answer].")
        yield [{"role": "user", "content": pair[0]}, {"role": ASSISTANT, "content": pair[1]}]


def read_preference(named: Record) -> Row:
    """Read a preferred and a rejected answer: texts after a prompt, or conversations, with or without a prompt."""
    sides = {column: side_of(named, column) for column in ("chosen", "rejected")}
    if sides["chosen"] == sides["rejected"]:
        raise BadLine("rejected", "same_answers", "chosen and rejected are the same.")
    prompt = side_of(named, "prompt") if "prompt" in named else None
    if prompt is None and isinstance(sides["chosen"], str):
        raise BadLine("prompt", "empty", "prompt is missing: chosen and rejected need one.")
    return sides | ({"prompt": prompt} if prompt is not None else {}) | tools_in(named)


def side_of(named: Record, column: str) -> Any:
    """Return a text or a conversation of a preference pair. Raises BadLine."""
    value = named[column]
    if isinstance(value, dict):
        value = [value]
    return conversation(value, column) if isinstance(value, list) else text_in(named, column)


def read_openai_preference(named: Record) -> Row:
    """Read a preference pair in OpenAI's spelling."""
    messages = named["input"].get("messages")
    sides = {"chosen": named["preferred_output"], "rejected": named["non_preferred_output"], "prompt": messages}
    return read_preference({**sides, "tools": named["input"].get("tools")})


def is_talk(value: Any) -> bool:
    """Return True for a list that begins with an object, as messages do."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def shared(named: Record) -> bool:
    """Return True for a conversation in ShareGPT's spelling."""
    container: Any = next((named[name] for name in SHARED_COLUMNS if name in named), None)
    return is_talk(container) and any("from" in turn for turn in container if isinstance(turn, dict))


def is_judged(named: Record) -> bool:
    """Return True for a completion that is marked good or bad."""
    return "completion" in named and str(named.get("label")).lower() in ("true", "false")


SHAREGPT, OPENAI = "ShareGPT", "OpenAI messages"
TRL_CONVERSATION = "TRL conversational prompt and completion"
PREFERENCE = "preference pairs (chosen, rejected)"
TALKS = (SHAREGPT, OPENAI)
TALK_COLUMNS = (*SHARED_COLUMNS, "functions")
FORMS = (
    Form("pre-tokenised", (), any_of("input_ids"), read_pretokenised),
    Form(
        "preference pairs of OpenAI",
        ("input", "preferred_output", "non_preferred_output"),
        lambda named: "preferred_output" in named and isinstance(named.get("input"), dict),
        read_openai_preference,
    ),
    Form(PREFERENCE, ("prompt", "chosen", "rejected"), any_of("chosen", "rejected"), read_preference),
    Form("unpaired preference", (), is_judged, read_unpaired),
    Form(SHAREGPT, TALK_COLUMNS, shared, read_messages),
    Form(OPENAI, TALK_COLUMNS, any_of(*SHARED_COLUMNS), read_messages),
    Form(
        TRL_CONVERSATION,
        ("prompt", "completion"),
        lambda named: is_talk(named.get("prompt")) and "completion" in named,
        read_conversational,
    ),
    Form("prompt and completion", ("prompt", "completion"), has("prompt", "completion"), read_prompt),
    Form("Alpaca", ("instruction", "input", "output", "history"), has("instruction", "output"), read_alpaca),
    Form("text", ("text",), any_of("text"), read_text),
    Form("prompt and completion", ("prompt", "completion"), any_of("prompt", "completion"), read_prompt),
)


def unknown_form(named: Record) -> BadLine:
    """Return the error of a record of no known form, with the mapping that would work if its names suggest one."""
    begin = "The row has neither prompt and completion, nor messages, nor text"
    if mapping := proposed_mapping(named):
        return BadLine("", "no_form", f"{begin}. This mapping would work: {json.dumps(mapping, ensure_ascii=False)}")
    there = ", ".join(sorted(map(str, named))) or "nothing"
    return BadLine("", "no_form", f"{begin}, but {there}. Name its columns in a mapping.")


def proposed_mapping(named: Record) -> dict[str, str] | None:
    """Return the mapping that the columns' names suggest, or None."""
    columns = {str(name).strip().casefold(): str(name) for name in named}
    for question, answered in PROPOSED:
        if question in columns and answered in columns:
            about = next((columns[name] for name in CONTEXTS if name in columns and name != question), None)
            if about is None:
                return {"prompt": columns[question], "completion": columns[answered]}
            return {"instruction": columns[question], "input": about, "output": columns[answered]}
    return None


def line_of(row: Row) -> str:
    """Return the row as its stored JSON line: the same bytes for the same row."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def content_hash(row: Row) -> int:
    """Return a 64-bit hash of what is trained that ignores case, white space and Unicode form: copies have the same."""
    words = json.dumps(
        {name: row[name] for name in row if name not in USE_COLUMNS[2:]}, ensure_ascii=False, sort_keys=True
    )
    return text_hash(words.replace("\\n", " ").replace("\\t", " "))
