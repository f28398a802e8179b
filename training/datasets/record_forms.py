"""The forms of records: the columns that each has, how it is recognised, and how it becomes a row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from training.datasets import preferences
from training.datasets.conversations import (
    ASSISTANT,
    conversation,
    refuse_tools,
    require_answer,
    tools_in,
    with_system,
)
from training.datasets.line_errors import BadLine, text_in

Row = dict[str, Any]
Record = dict[str, Any]
SHARED_COLUMNS = ("messages", "conversations", "conversation")
# Other names for a prompt and its completion, in the order in which they are proposed.
PROPOSED = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("user_message", "assistant_message"),
    ("user_prompt", "response"),
    ("input_text", "output_text"),
    ("input_text", "target_text"),
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
# Other names for a preferred and a rejected answer, and for the prompt before them.
PAIRED = (
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("preferred", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred_output", "non_preferred_output"),
    ("accepted", "rejected"),
    ("response_j", "response_k"),
    ("winner", "loser"),
    ("win", "lose"),
)
PROMPTED = ("prompt", "instruction", "question", "query", "input", "user")
# Other names for a plain text.
WRITTEN = ("text", "content", "body", "page_content", "article", "document_text")
# Other names for the text that a question is about.
CONTEXTS = ("context", "input", "passage")


def is_blank(value: Any) -> bool:
    """Return True for an empty text, list or object."""
    return value in ("", [], {})


@dataclass(frozen=True)
class Form:
    """A form of records: `name` is for people, and `fits` is True for a record of this form.

    `columns` are those that it reads, or a function of the record that returns them. `read` returns the record's row
    and raises BadLine for one that is not valid.
    """

    name: str
    columns: tuple[str, ...] | Callable[[Record], tuple[str, ...]]
    fits: Callable[[Record], bool]
    read: Callable[[Record], Row]


def has(*columns: str) -> Callable[[Record], bool]:
    """Return a predicate that is True for records with all of these columns."""
    return lambda named: all(column in named for column in columns)


def any_of(*columns: str) -> Callable[[Record], bool]:
    """Return a predicate that is True for records with at least one of these columns."""
    return lambda named: any(column in named for column in columns)


def read_pretokenised(named: Record) -> Row:
    """Raise BadLine, because rows of token ids are not accepted."""
    message = "The row is pre-tokenised (input_ids): its numbers fit one tokenizer alone. Upload the text instead."
    raise BadLine("input_ids", "pre_tokenised", message)


def read_messages(named: Record) -> Row:
    """Return {messages, tools} from a conversation in OpenAI's or ShareGPT's spelling, without tools if it has none.

    Raises BadLine for a bad message, bad tools, two system texts, or a last message that is not the assistant's.
    """
    column = next(name for name in SHARED_COLUMNS if name in named)
    turns = with_system(conversation(named[column], column), named)
    require_answer(turns, column)
    return {"messages": turns} | tools_in(named)


def read_conversational(named: Record) -> Row:
    """Return {messages, tools} from TRL's conversational prompt and completion; answers in the prompt get weight 0.

    Raises BadLine for a bad message, bad tools, two system texts, or a last message that is not the assistant's.
    """
    before = [
        turn | ({"weight": 0} if turn["role"] == ASSISTANT else {}) for turn in conversation(named["prompt"], "prompt")
    ]
    answer = conversation(named["completion"], "completion")
    turns = with_system([*before, *answer], named)
    require_answer(turns, "completion")
    return {"messages": turns} | tools_in(named)


def read_prompt(named: Record) -> Row:
    """Return {prompt, completion}; the text of a column `system` precedes the prompt.

    Raises BadLine if a text is missing, blank or not text, or if the record has tools. If the completion is missing and
    other columns suggest a mapping, the error names it.
    """
    refuse_tools(named)
    if filled(named, "history"):
        message = "Earlier turns in history are read beside instruction and output: name the columns so in a mapping."
        raise BadLine("history", "history_without_instruction", message)
    if "completion" not in named and proposed_mapping(named):
        raise unknown_form(named)
    prompt = text_in(named, "prompt")
    if "system" in named and str(named["system"]).strip():
        prompt = f"{text_in(named, 'system')}\n\n{prompt}"
    return {"prompt": prompt, "completion": text_in(named, "completion")}


def read_text(named: Record) -> Row:
    """Return {text} from a plain text, all of which the loss counts.

    Raises BadLine, also for a record with tools or a system text.
    """
    refuse_tools(named)
    if str(named.get("system") or "").strip():
        raise BadLine("system", "system_without_messages", "A column system needs messages or prompts beside it.")
    return {"text": text_in(named, "text")}


def read_alpaca(named: Record) -> Row:
    """Return {prompt, completion} from Alpaca's system, instruction, input and output; with `history` {messages}.

    Raises BadLine if a text is blank or not text, the history is not a list of pairs, or the record has tools.
    """
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
    """Return True if the record has the column with more than white space."""
    return column in named and not is_blank(named[column]) and bool(str(named[column]).strip())


def pairs_of(history: Any) -> Iterable[list[Record]]:
    """Yield a question and its answer as two turns, for each pair of the history. Raises BadLine for another form."""
    for pair in history if isinstance(history, list) else [None]:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(text, str) and text.strip() for text in pair)
        ):
            raise BadLine("history", "bad_history", "history is not a list of [question, answer].")
        yield [{"role": "user", "content": pair[0]}, {"role": ASSISTANT, "content": pair[1]}]


def is_talk(value: Any) -> bool:
    """Return True for a list that begins with an object, as a list of messages does."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def shared(named: Record) -> bool:
    """Return True for a conversation in ShareGPT's spelling, whose messages have `from`."""
    container: Any = next((named[name] for name in SHARED_COLUMNS if name in named), None)
    return is_talk(container) and any("from" in turn for turn in container if isinstance(turn, dict))


SHAREGPT, OPENAI = "ShareGPT", "OpenAI messages"
TRL_CONVERSATION = "TRL conversational prompt and completion"
TALKS = (SHAREGPT, OPENAI)


def talk_columns(named: Record) -> tuple[str, ...]:
    """Return the columns of a conversation that are read: the first of several columns of messages, and `functions`."""
    return (next(name for name in SHARED_COLUMNS if name in named), "functions")


FORMS = (
    Form("pre-tokenised", (), any_of("input_ids"), read_pretokenised),
    Form(
        "preference pairs of OpenAI",
        ("input", "preferred_output", "non_preferred_output"),
        lambda named: "preferred_output" in named and isinstance(named.get("input"), dict),
        preferences.read_openai_pair,
    ),
    Form(
        "preference pairs (chosen, rejected)",
        preferences.columns_of,
        any_of("chosen", "rejected"),
        preferences.read_pair,
    ),
    Form(
        "preference pairs (chosen, rejected)",
        lambda named: (*talk_columns(named), *preferences.REJECTED),
        lambda named: any_of(*SHARED_COLUMNS)(named) and any_of(*preferences.REJECTED)(named),
        preferences.read_answered_pair,
    ),
    Form(
        "answers marked good or bad (label)",
        preferences.columns_of,
        preferences.is_judged,
        preferences.read_unpaired,
    ),
    Form(SHAREGPT, talk_columns, shared, read_messages),
    Form(OPENAI, talk_columns, any_of(*SHARED_COLUMNS), read_messages),
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


INSIDE = {"messages", "conversations", "prompt", "completion", "text", "instruction", "output", "chosen"}


def unknown_form(named: Record) -> BadLine:
    """Return, without raising it, the error of a record of no known form.

    It contains the mapping that the names of the columns suggest, if any.
    """
    if not named:
        return BadLine("", "no_form", "Every column of the row is empty: leave the row out.")
    for name, value in named.items():
        inside = value.keys() & INSIDE if isinstance(value, dict) else set()
        if inside:
            where = f"{min(inside)} stands inside of {name!r}: write it as a column of its own."
            return BadLine(str(name), "no_form", f"The row has columns that are objects; {where}")
    begin = "The row has neither prompt and completion, nor messages, nor text, nor chosen and rejected"
    if mapping := proposed_mapping(named):
        return BadLine("", "no_form", f"{begin}. This mapping would work: {json.dumps(mapping, ensure_ascii=False)}")
    there = ", ".join(sorted(map(str, named))) or "nothing"
    return BadLine("", "no_form", f"{begin}, but {there}. Name its columns in a mapping.")


def proposed_mapping(named: Record) -> dict[str, str] | None:
    """Return the mapping (our column -> the file's) that the names of the columns suggest.

    None if they suggest none.
    """
    talks = [str(name) for name, value in named.items() if is_talk(value) and {"role", "from"} & value[0].keys()]
    if talks and not {*SHARED_COLUMNS, "prompt", "completion"} & named.keys():
        return {"messages": talks[0]}
    columns = {plain_name(name): str(name) for name in named}
    for chosen, rejected in PAIRED:
        if chosen in columns and rejected in columns:
            prompt = next((columns[name] for name in PROMPTED if name in columns), None)
            pair = {"chosen": columns[chosen], "rejected": columns[rejected]}
            return pair if prompt is None else {"prompt": prompt, **pair}
    for question, answered in PROPOSED:
        if question in columns and answered in columns:
            about = next((columns[name] for name in CONTEXTS if name in columns and name != question), None)
            if about is None and "history" in columns:
                return {"instruction": columns[question], "output": columns[answered]}
            if about is None:
                return {"prompt": columns[question], "completion": columns[answered]}
            return {"instruction": columns[question], "input": about, "output": columns[answered]}
    written = next((columns[name] for name in WRITTEN if name in columns), None)
    return None if written is None or {"prompt", "completion"} & columns.keys() else {"text": written}


def plain_name(name: Any) -> str:
    """Return a column's name in lower case, its words joined by single underscores."""
    return re.sub(r"[\W_]+", "_", str(name).strip().casefold()).strip("_")
