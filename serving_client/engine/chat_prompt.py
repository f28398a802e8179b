"""Conversations, with tools and reasoning, as prompts in the chat template of the base model, as in trainings."""

from __future__ import annotations

import json
import re
from typing import Any

from serving_client.chat_conventions import REASONING, REFUSALS

Turn = dict[str, Any]


# A word that no text holds by chance.
MARK = "Zqxmarkqxz"
# Fields of a message that a template may leave out: names and numbers of who speaks, and copies of the content.
OPTIONAL = ("role", "content", "name", "tool_call_id", "tool_calls", "annotations", "parsed")


class ChatRefused(ValueError):
    """Error for a request that the chat template fails on or leaves out in part; `field` names its field at fault."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def chat_prompt(tokenizer: Any, messages: list[Turn], tools: list[Turn] | None) -> str:
    """Return the text of the conversation up to the answer to come.

    Raises ChatRefused if the template fails, or leaves out messages, fields, tools or tool calls.
    """
    try:
        text = rendered(tokenizer, messages, tools)
        bare = rendered(tokenizer, messages, None) if tools else ""
        require_whole(tokenizer, messages, tools, text)
    except ChatRefused:
        raise
    except REFUSALS as error:
        raise ChatRefused(f"The chat template refuses these messages: {error}", "messages") from error
    if tools and text == bare:
        raise ChatRefused("The chat template of this base model does not render 'tools': leave them out.", "tools")
    names = [call["function"]["name"] for turn in messages for call in turn.get("tool_calls") or ()]
    if any(name not in text for name in names):
        raise ChatRefused("The chat template of this base model does not render 'tool_calls'.", "messages")
    return text


def require_whole(tokenizer: Any, messages: list[Turn], tools: list[Turn] | None, text: str) -> None:
    """Raise ChatRefused if the template never reads a field of a message, or leaves a whole message out.

    `text` is the rendered conversation. Messages of the assistant and empty ones are not searched for in it.
    """
    source = str(tokenizer.get_chat_template(tools=tools))
    for place, turn in enumerate(messages):
        for name in turn.keys() - {*OPTIONAL}:
            names = REASONING if name in REASONING else (name,)
            if says(turn[name]) and not any(re.search(rf"[.'\"]{re.escape(one)}\b", source) for one in names):
                message = f"messages.{place}.{name[:100]} is not rendered by the chat template: leave it out."
                raise ChatRefused(message, "messages")
        content = turn["content"].strip()
        if turn["role"] == "assistant" or not content or content in text:
            continue
        # A template may write it in other words; then it writes a mark in them, too.
        changed = [*messages[:place], {**turn, "content": MARK}, *messages[place + 1 :]]
        if MARK.casefold() not in rendered(tokenizer, changed, tools).casefold():
            message = f"The chat template does not render messages of the role {turn['role'][:40]!r}: leave them out."
            raise ChatRefused(message, "messages")


def says(value: object) -> bool:
    """Return True for a value that says something: null, false and what is empty do not, but a 0 does."""
    return bool(value) or (isinstance(value, int | float) and not isinstance(value, bool))


def rendered(tokenizer: Any, messages: list[Turn], tools: list[Turn] | None) -> str:
    """Return the conversation as the template renders it, with the arguments of tool calls as objects.

    If that fails and there are calls, it is rendered again with their arguments as JSON text. Raises one of REFUSALS if
    the template fails.
    """
    source = str(tokenizer.get_chat_template(tools=tools))
    try:
        return applied(tokenizer, [worded(turn, source, as_text=False) for turn in messages], tools)
    except REFUSALS:
        if not any(turn.get("tool_calls") for turn in messages):
            raise
        return applied(tokenizer, [worded(turn, source, as_text=True) for turn in messages], tools)


def applied(tokenizer: Any, messages: list[Turn], tools: list[Turn] | None) -> str:
    """Return the turns, up to the answer to come, as the tokenizer's chat template renders them."""
    return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True))


def worded(turn: Turn, source: str, *, as_text: bool) -> Turn:
    """Return a turn with role, reasoning and tool calls in the form that the chat template reads.

    `source` is the template's text. The role `developer` becomes `system` if the template does not know it. With
    `as_text` the arguments of calls are JSON text, else objects.
    """
    plain = {
        name: value for name, value in turn.items() if name not in (*REASONING, "tool_calls") and value is not None
    }
    if plain["role"] == "developer" and "developer" not in source:
        plain["role"] = "system"
    thoughts = next((turn[name] for name in REASONING if turn.get(name)), None)
    if thoughts is not None:
        plain[next((name for name in REASONING if re.search(rf"[.'\"]{name}\b", source)), REASONING[0])] = thoughts
    if calls := turn.get("tool_calls"):
        plain["tool_calls"] = [with_arguments(call, as_text=as_text) for call in calls]
    return plain


def with_arguments(call: Turn, *, as_text: bool) -> Turn:
    """Return a tool call with its arguments as JSON text if `as_text`, else as the parsed object.

    Without `as_text`, a text that holds another JSON value than an object stays as it is, and one that is not JSON
    raises ValueError.
    """
    function = call["function"]
    arguments = function.get("arguments") or {}
    if as_text:
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    elif isinstance(arguments, str):
        read = json.loads(arguments)
        arguments = read if isinstance(read, dict) else arguments
    return {**call, "function": {**function, "arguments": arguments}}
