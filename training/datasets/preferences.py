"""Preference rows in the spellings of TRL, OpenAI, Anthropic, UltraFeedback and others. No database, no torch.

A pair becomes {prompt, chosen, rejected}, and an answer that is marked good or bad {prompt, completion, label}. Prompt
and answers are either all texts or all lists of turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from training.datasets import conversations
from training.datasets.conversations import (
    ASSISTANT,
    SYSTEM,
    USER,
    conversation,
    require_answer,
    system_text,
    tools_in,
    with_system,
)
from training.datasets.line_errors import BadLine, parsed_json, text_in
from training.lm.preference import SIDES

Row = dict[str, Any]
Record = dict[str, Any]
Turn = dict[str, Any]

ANSWERS = ("completion", *SIDES)
TALKS = ("messages", "conversations", "conversation")
# Judgements: columns of numbers hold 1 and 0. "positive" and "yes" are none, as they may well describe the prompt.
GOOD_OR_BAD = {
    **dict.fromkeys(("true", "1", "1.0", "good", "desirable", "chosen", "accepted", "thumbs_up", "upvote"), True),
    **dict.fromkeys(("false", "0", "0.0", "bad", "undesirable", "rejected", "thumbs_down", "downvote"), False),
}
# ModelScope's columns of a rejected answer, beside a conversation that ends with the preferred one.
REJECTED = ("rejected_response", "rejected_messages")
QUESTIONS = ("prompt", "question", "instruction")
# Where Anthropic's HH-RLHF begins an answer.
ASSISTED = "\n\nAssistant:"
# The end of a common beginning that cuts no word.
WORD_END = re.compile(r".*(?=\s)", re.DOTALL)


def read_pair(named: Record) -> Row:
    """Return a row {prompt, chosen, rejected} from a record with a preferred and a rejected answer.

    The prompt is a text, turns, or what both sides begin with; the sides are texts, a message, or conversations, with
    or without the prompt before them. Raises BadLine if prompt or answer is missing or bad, both answers are the same,
    or the row has a weight other than 1.
    """
    refuse_weight(named)
    sides = [side_of(named, column) for column in SIDES]
    prompt = prompt_of(named)
    if isinstance(prompt, list) or any(isinstance(side, list) for side in sides):
        row = read_talks(prompt, [as_turns(side) for side in sides], named)
    else:
        conversations.refuse_tools(named)
        row = read_texts(prompt, sides, named)
    if row["chosen"] == row["rejected"]:
        raise BadLine("rejected", "same_answers", "chosen and rejected are the same.")
    return row


def read_openai_pair(named: Record) -> Row:
    """Return a row {prompt, chosen, rejected} from OpenAI's columns for preferences.

    They are `input`, an object with messages and tools, `preferred_output` and `non_preferred_output`. Raises BadLine
    as `read_pair` does.
    """
    request = named["input"]
    sides = {"chosen": named["preferred_output"], "rejected": named.get("non_preferred_output")}
    rest = {name: value for name, value in named.items() if name in ("system", "weight")}
    return read_pair({**rest, **sides, "prompt": request.get("messages"), "tools": request.get("tools")})


def read_answered_pair(named: Record) -> Row:
    """Return a row {prompt, chosen, rejected} from a conversation, whose last answer is chosen, and a rejected answer.

    Raises BadLine as `read_pair` does, and if the conversation does not end with an answer.
    """
    column = next(name for name in TALKS if name in named)
    talk = parsed_json(named[column], column)
    require_answer(conversation(talk, column), column)
    sides = {"chosen": [talk[-1]], "rejected": next(named[name] for name in REJECTED if name in named)}
    rest = {name: value for name, value in named.items() if name in ("system", "weight", "tools", "functions")}
    return read_pair({**rest, **sides, "prompt": talk[:-1]})


def read_unpaired(named: Record) -> Row:
    """Return a row {prompt, completion, label} from a record whose label marks its answer as good or bad.

    A conversation is split before its last message, which must be the assistant's. Raises BadLine if prompt or answer
    is missing or bad, or the row has a weight other than 1.
    """
    refuse_weight(named)
    label = GOOD_OR_BAD[label_of(named["label"])]
    talk = next((named[name] for name in TALKS if name in named), None)
    if talk is not None and "completion" not in named:
        turns = with_system(conversation(talk, "messages"), named)
        require_answer(turns, "messages")
        return {**checked_talk(turns[:-1], [turns[-1]], "messages"), "label": label} | tools_in(named)
    prompt, answer = prompt_of(named), side_of(named, "completion" if "completion" in named else "output")
    if prompt is None:
        raise BadLine("prompt", "empty", "prompt is missing: whether an answer is good depends on its prompt.")
    if isinstance(prompt, str) and isinstance(answer, str):
        conversations.refuse_tools(named)
        return {"prompt": with_preface(prompt, named), "completion": answer, "label": label}
    turns = with_system(as_prompt(prompt), named)
    (rest,) = without_prompt(turns, [as_turns(answer)])
    return {**checked_talk(turns, rest, "completion"), "label": label} | tools_in(named)


def refuse_weight(named: Record) -> None:
    """Raise BadLine for a weight of the row other than 1, since no preference loss has weights."""
    if "weight" in named and conversations.loss_weight(named["weight"], "weight") != 1:
        raise BadLine("weight", "pair_weight", "A preference row cannot have a weight: remove the row or the weight.")


def side_of(named: Record, column: str) -> str | list[Turn]:
    """Return the answer in the column: turns for a message or a list of messages, also as JSON, else the text.

    Raises BadLine if it is missing, blank or not valid.
    """
    value = unfolded(named.get(column), column)
    return conversation(value, column) if isinstance(value, list) else text_in(named, column)


def unfolded(value: Any, column: str) -> Any:
    """Return a message, or messages written as JSON text, as a list of messages; other values unchanged.

    Raises BadLine for text that begins as such JSON and is not.
    """
    if isinstance(value, str) and value.lstrip().startswith(('[{"role"', '[{"from"')):
        return parsed_json(value, column)
    return [value] if isinstance(value, dict) else value


def as_turns(side: str | list[Turn]) -> list[Turn]:
    """Return an answer as turns: a text becomes one turn of the assistant."""
    return [{"role": ASSISTANT, "content": side}] if isinstance(side, str) else side


def as_prompt(prompt: str | list[Turn]) -> list[Turn]:
    """Return a prompt as turns: a text becomes one turn of the user."""
    return [{"role": USER, "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_of(named: Record) -> str | list[Turn] | None:
    """Return the prompt, from the first column that can hold one, as text or as turns; None if there is no such column.

    The text of a column `input` follows an instruction after an empty line. Raises BadLine for a prompt that is blank
    or not valid.
    """
    column = next((name for name in (*QUESTIONS, *TALKS) if name in named), None)
    if column is None:
        return None
    value = unfolded(named[column], column)
    if isinstance(value, list) or column in TALKS:
        return conversation(value, column)
    text = text_in(named, column)
    if column == "instruction" and isinstance(named.get("input"), str) and named["input"].strip():
        return f"{text}\n\n{text_in(named, 'input')}"
    return text


def read_texts(prompt: str | None, sides: Sequence[Any], named: Record) -> Row:
    """Return the row of a pair of texts after a prompt; if that is None, after the text that both begin with.

    Raises BadLine without a prompt or an answer.
    """
    chosen, rejected = sides
    if prompt is None:
        prompt = common_text(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if not prompt.strip():
            message = "prompt is missing, and chosen and rejected do not begin with a common one: give a prompt."
            raise BadLine("prompt", "empty", message)
    row = {"prompt": with_preface(prompt, named), "chosen": chosen, "rejected": rejected}
    for column in SIDES:
        if not row[column].strip():
            raise BadLine(column, "empty", f"{column} has no answer of its own after the prompt.")
    return row


def common_text(chosen: str, rejected: str) -> str:
    """Return the text that both begin with, cut at a boundary.

    The boundary is the last "Assistant:" in Anthropic's form within it, else the end of a word.
    """
    length = next((at for at, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]), None)
    shared = chosen[: min(len(chosen), len(rejected)) if length is None else length]
    if ASSISTED in shared:
        return shared[: shared.rindex(ASSISTED) + len(ASSISTED)]
    match = WORD_END.match(shared)
    return match[0] if match else ""


def with_preface(prompt: str, named: Record) -> str:
    """Return a plain prompt after the text of the record's column `system` and an empty line, unless that is blank.

    Raises BadLine if the column is not text or too long.
    """
    if str(named.get("system") or "").strip():
        return f"{system_text(named['system'])}\n\n{prompt}"
    return prompt


def read_talks(prompt: str | list[Turn] | None, sides: list[list[Turn]], named: Record) -> Row:
    """Return the row of a pair of conversations after a prompt; if that is None, after the turns that both begin with.

    A prompt that is a text and a turn of both sides is not repeated. Raises BadLine unless the prompt ends with the
    turn of somebody else and the assistant answers it on both sides.
    """
    if isinstance(prompt, str) and not is_before(prompt, sides):
        prompt = as_prompt(prompt)
    if isinstance(prompt, list):
        turns = with_system(prompt, named)
        rest = without_prompt(turns, sides)
    else:
        shared = common_turns(*sides)
        turns, rest = with_system(shared, named), [side[len(shared) :] for side in sides]
    chosen, rejected = (checked_talk(turns, side, column) for column, side in zip(SIDES, rest, strict=True))
    answers = {"chosen": chosen["completion"], "rejected": rejected["completion"]}
    return {"prompt": turns, **answers} | tools_in(named)


def is_before(prompt: str, sides: list[list[Turn]]) -> bool:
    """Return True if both sides contain the prompt as a user's turn before their answers, as UltraFeedback's do."""
    return any(turn["role"] == USER and turn["content"].strip() == prompt.strip() for turn in common_turns(*sides))


def without_prompt(prompt: list[Turn], sides: list[list[Turn]]) -> list[list[Turn]]:
    """Return each side without the prompt's turns at its beginning.

    A system turn of the prompt may be missing there.
    """
    spoken = [turn for turn in prompt if turn["role"] != SYSTEM]
    answers = []
    for side in sides:
        for beginning in (prompt, spoken):
            if beginning and side[: len(beginning)] == beginning:
                side = side[len(beginning) :]
                break
        answers.append(side)
    return answers


def common_turns(chosen: list[Turn], rejected: list[Turn]) -> list[Turn]:
    """Return the turns that both conversations begin with, their last turns excluded."""
    shared: list[Turn] = []
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


def checked_talk(prompt: list[Turn], answer: list[Turn], column: str) -> Row:
    """Return {prompt, completion}, both lists of turns.

    Raises BadLine unless the prompt ends with the turn of somebody else and the assistant answers it, with weights of 0
    or 1 that are not all 0.
    """
    if not any(turn["role"] != SYSTEM for turn in prompt):
        raise BadLine("prompt", "empty", "prompt is missing: the conversation begins with its answer.")
    if prompt[-1]["role"] == ASSISTANT:
        raise BadLine(
            "prompt", "no_question", "The prompt ends with an answer of the assistant: leave that answer out."
        )
    if not answer or answer[0]["role"] != ASSISTANT:
        message = f"{column} does not continue the prompt with an answer of the assistant."
        raise BadLine(column, "no_answer", message)
    require_answer(answer, column)
    for turn in answer:
        if turn.get("weight", 1) not in (0, 1):
            raise BadLine(column, "bad_weight", f"A message of {column} has a weight between 0 and 1: give 0 or 1.")
    if all(turn.get("weight", 1) == 0 for turn in answer if turn["role"] == ASSISTANT):
        raise BadLine(column, "bad_weight", f"Every answer of {column} has the weight 0: leave the row out.")
    return {"prompt": prompt, "completion": answer}


def columns_of(named: Record) -> tuple[str, ...]:
    """Return the columns of a preference row that are read."""
    prompt = next((name for name in (*QUESTIONS, *TALKS) if name in named), "prompt")
    return (*ANSWERS, "label", "output", "functions", prompt, *(["input"] if prompt == "instruction" else []))


def is_judged(named: Record) -> bool:
    """Return True for a record with an answer that its label marks good or bad, in a word of GOOD_OR_BAD."""
    if label_of(named.get("label")) not in GOOD_OR_BAD:
        return False
    return "completion" in named or {"instruction", "output"} <= set(named) or any(name in named for name in TALKS)


def label_of(value: Any) -> str:
    """Return a label as a word in lower case with `_` for spaces and hyphens; 1.0 and 0.0 as 1 and 0."""
    word = str(int(value) if isinstance(value, float) and value in (0.0, 1.0) else value)
    return re.sub(r"[\s-]+", "_", word.strip().lower())


def kind_of(columns: Iterable[str]) -> str:
    """Return the kind of data with these columns: `pairs`, `labels` (good or bad), or `answers`."""
    there = set(columns)
    return "pairs" if "chosen" in there else "labels" if "label" in there else "answers"


def turns_in(row: Row) -> list[Turn]:
    """Return all turns of a preference row; none if it holds texts."""
    return [turn for name in ("prompt", *ANSWERS) if isinstance(row.get(name), list) for turn in row[name]]


def answers_in(row: Row) -> list[str]:
    """Return the answers of a preference row that are texts; those that are turns are left out."""
    return [row[name] for name in ANSWERS if isinstance(row.get(name), str)]
