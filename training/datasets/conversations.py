"""Conversations in the spellings of OpenAI, ShareGPT and TRL, read as messages of one form. No database, no torch."""

from __future__ import annotations

import json
import math
from typing import Any

from serving_client.chat_conventions import REASONING
from training.datasets.line_errors import KINDS, BadLine, is_visible, parsed_json, sized, text_in, without_nulls

Turn = dict[str, Any]
SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
CALL = "function_call"
ROLES = {
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "model", "bot", "ai", "bing", "bard", "claude", "chatbot", "llm"), ASSISTANT
    ),
    **dict.fromkeys(
        (
            "tool",
            "function",
            "observation",
            "ipython",
            "tool_response",
            "function_response",
            "tool_result",
            "tool_output",
        ),
        TOOL,
    ),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
}
# Other projects' words for "the loss counts this turn".
TRAINED = (
    "weight",
    "train",
    "training",
    "trainable",
    "train_on_turn",
    "loss",
    "loss_mask",
    "loss_weight",
    "loss_scale",
)
# The arguments of a call in the words of OpenAI, Llama and Anthropic.
ARGUMENTS = ("arguments", "parameters", "input", "args", "kwargs")
# Other fields of a call, which change nothing in what is called.
OF_CALLS = ("name", "id", "type", "index", "description", "strict", "parsed_arguments")
REFUSED = ("audio", "images", "image", "video", "videos", "refusal", "train_detail")
# The text of a message in the words of OpenAI, ShareGPT and Gemini.
CONTENTS = ("content", "value", "parts", "text")
CONTENT = (*CONTENTS, "role", "from", "content", "value", "name", "tool_calls", "function_call", "tool_call_id")
KNOWN = {*CONTENT, *TRAINED, *REASONING, *REFUSED}


def conversation(value: Any, column: str = "messages") -> list[Turn]:
    """Return the messages in `value` in one form, without empty system messages.

    `value` is a list or its JSON. Raises BadLine for an empty list, and for a role, a part or a field that no training
    could honour; it blames `column`.
    """
    messages = parsed_json(value, column)
    if not isinstance(messages, list) or not messages:
        raise BadLine(column, "empty", f"{column} is not a list of {{role, content}}.")
    turns = [turn_of(message, column) for message in messages]
    return [turn for turn in turns if turn["role"] != SYSTEM or turn["content"].strip()]


def require_answer(turns: list[Turn], column: str = "messages") -> None:
    """Raise BadLine unless the last turn is the assistant's."""
    if not turns or turns[-1]["role"] != ASSISTANT:
        raise BadLine(column, "no_answer", "The last message must be the assistant's.")


def turn_of(message: Any, column: str) -> Turn:
    """Return a message as {role, content}, with an answer's weight, calls and reasoning or a tool's name and id.

    Raises BadLine for an unknown role, content that is not text, an empty question or answer, a bad weight, a bad
    call, media, tools, and calls or reasoning outside answers. Drops the fields that `unread_fields` names.
    """
    message = without_nulls(message)
    speaker = message.get("from", message.get("role")) if isinstance(message, dict) else None
    role = role_of(speaker)
    if role is None:
        raise BadLine(
            column,
            "bad_role",
            f"A message's role is system, developer, user, assistant or tool{instead(message, speaker)}.",
        )
    refuse_unread(message, column)
    refuse_asides(message, column)
    refuse_of_others(message, column, role)
    text = text_of(next((message[name] for name in CONTENTS if name in message), None), column)
    if role == CALL:
        return {
            "role": ASSISTANT,
            "content": "",
            "tool_calls": shared_calls(text, column),
            **weight_of(message, column),
        }
    return READERS[role](message, text, column)


def instead(message: Any, speaker: Any) -> str:
    """Return the end of an error message that says what the message has instead of a known role; "" if nothing."""
    if speaker is not None:
        return ", not " + repr(speaker)[:40]
    if not isinstance(message, dict):
        return f", and a message is {KINDS.get(type(message), 'a text')} here"
    if message:
        return ", and this message has none, but " + ", ".join(map(str, message))[:80]
    return ""


def role_of(speaker: Any) -> str | None:
    """Return the role of a speaker, whatever its upper and lower case; None for an unknown one."""
    return ROLES.get(speaker.strip().casefold()) if isinstance(speaker, str) else None


def refuse_unread(message: dict[str, Any], column: str) -> None:
    """Raise BadLine for a field that no training here reads, such as images or audio."""
    for name in REFUSED:
        if message.get(name):
            raise BadLine(
                column, "not_text", f"{column} holds {name}, which no training here reads: leave the row out."
            )


def refuse_asides(message: dict[str, Any], column: str) -> None:
    """Raise BadLine for a message that is no answer to the user: a channel of thoughts, or words to a tool."""
    if message.get("channel") not in (None, "", "final"):
        where = f"A message is in the channel {str(message['channel'])[:40]!r}"
        raise BadLine(column, "bad_channel", f"{where}: write thoughts as reasoning_content of the answer.")
    if message.get("recipient") not in (None, "", "all", "user", "assistant"):
        where = f"A message is for the recipient {str(message['recipient'])[:40]!r}"
        raise BadLine(column, "bad_recipient", f"{where}: write calls of tools as tool_calls.")


def refuse_of_others(message: dict[str, Any], column: str, role: str) -> None:
    """Raise BadLine for tools in a message, and for fields that only answers have in a message of another role."""
    if message.get("tools") or message.get("functions"):
        raise BadLine(column, "bad_tools", "A message holds tools: give them in a column tools beside the messages.")
    if role in (ASSISTANT, CALL):
        return
    for name in ("tool_calls", "function_call", *REASONING):
        if message.get(name):
            raise BadLine(column, "not_of_role", f"A message of the role {role} has {name}, which answers alone have.")


def plain(message: Turn, text: str, column: str, role: str) -> Turn:
    """Return {role, content}. Raises BadLine if the text has no visible character, unless the role is system."""
    if role != SYSTEM and not is_visible(text):
        raise BadLine(column, "empty", f"The content of a message of the {role} is missing, empty or not text.")
    return {"role": role, "content": text}


def assistant_turn(message: Turn, text: str, column: str) -> Turn:
    """Return an answer with its reasoning, calls and weight.

    Raises BadLine if it has neither text nor calls, and for reasoning, a call or a weight that is not valid.
    """
    calls = calls_of(message, column)
    turn: Turn = {"role": ASSISTANT, "content": text if calls else plain(message, text, column, ASSISTANT)["content"]}
    if (thought := thought_of(message, column)) is not None:
        turn["reasoning_content"] = thought
    if calls:
        turn["tool_calls"] = calls
    return turn | weight_of(message, column)


def thought_of(message: Turn, column: str) -> str | None:
    """Return the reasoning of an answer; None without one.

    Raises BadLine if it is not text, or if two fields hold different ones.
    """
    given = {name: message[name] for name in REASONING if message.get(name)}
    for name, thought in given.items():
        if not isinstance(thought, str):
            kind = KINDS.get(type(thought), type(thought).__name__)
            raise BadLine(column, "not_text", f"{name} is {kind}, not text.")
    thoughts = {sized(thought, column) for thought in given.values() if thought.strip()}
    if len(thoughts) > 1:
        raise BadLine(column, "two_thoughts", f"An answer has {' and '.join(given)}, which differ: keep one.")
    return next(iter(thoughts), None)


def tool_turn(message: Turn, text: str, column: str) -> Turn:
    """Return a tool's result with the tool's name and the id of the call, if the message has them."""
    fields = {name: message[name] for name in ("name", "tool_call_id") if isinstance(message.get(name), str)}
    return {"role": TOOL, "content": text, **fields}


READERS = {
    SYSTEM: lambda message, text, column: plain(message, text, column, SYSTEM),
    USER: lambda message, text, column: plain(message, text, column, USER),
    ASSISTANT: assistant_turn,
    TOOL: tool_turn,
}


def text_of(content: Any, column: str) -> str:
    """Return a content as text: a text as it is, "" for null, or the joined parts of type text.

    Raises BadLine for other content, or text that is too long.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return sized(content, column)
    if not isinstance(content, list):
        raise BadLine(column, "empty", "A message's content is text, or a list of parts of type text.")
    return sized("".join(part_of(part, column) for part in content), column)


def part_of(part: Any, column: str) -> str:
    """Return the text of a content part. Raises BadLine for a part of another type."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
        named = f"of type {kind!r}" if kind != "text" else "no text"
        raise BadLine(column, "not_text", f"A part of a message is {named}; only text is trained.")
    return str(part["text"])


def calls_of(message: Turn, column: str) -> list[Turn]:
    """Return the calls of a message as {id, type, function: {name, arguments}}, with the arguments as an object.

    Raises BadLine for calls of another form.
    """
    calls = parsed_json(message.get("tool_calls") or [], column)
    if one := message.get("function_call"):
        calls = [*calls, {"function": parsed_json(one, column)}]
    if not isinstance(calls, list):
        raise BadLine(column, "bad_tool_call", "tool_calls is not a list.")
    return [call_of(call, column) for call in calls]


def call_of(call: Any, column: str) -> Turn:
    """Return a call as {id, type, function: {name, arguments}}, without an id if it has none.

    Raises BadLine without a name, and for fields that nothing reads.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadLine(column, "bad_tool_call", "Each of tool_calls needs a function with a name and arguments.")
    fields = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    given = [name for name in ARGUMENTS if function.get(name) is not None]
    if len(given) > 1:
        raise BadLine(column, "bad_tool_call", f"A call has {' and '.join(given)}: keep one.")
    called = {"name": function["name"], "arguments": arguments_of(function[given[0]] if given else None)}
    if unknown := [name for name in function if name not in (*ARGUMENTS, *OF_CALLS) and function[name] is not None]:
        raise BadLine(
            column, "bad_tool_call", f"A call has {unknown[0]!r}, which nothing reads: it has name, arguments."
        )
    return {**fields, "type": "function", "function": called}


def arguments_of(arguments: Any) -> Any:
    """Return the arguments as an object if they are one or its JSON, {} for none, else unchanged."""
    if arguments in (None, ""):
        return {}
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments
    return read if isinstance(read, dict) else arguments


def shared_calls(text: str, column: str) -> list[Turn]:
    """Return the calls in the text of ShareGPT's function_call: JSON of one object, or of a list.

    A call without a name gets the name "". Raises BadLine for other text, and for a call with fields that nothing
    reads.
    """
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        message = 'A function_call is JSON: {"name": ..., "arguments": {...}}, or a list of them.'
        raise BadLine(column, "bad_tool_call", message) from None
    calls = read if isinstance(read, list) else [read]
    return [call_of({"name": "", **call} if isinstance(call, dict) else call, column) for call in calls]


def weight_of(message: Turn, column: str) -> Turn:
    """Return {weight} if an answer names a weight other than 1, else {}; true and false count as 1 and 0.

    Raises BadLine for a weight outside 0 to 1, and for fields that give different weights.
    """
    given = [message[name] for name in TRAINED if name in message]
    weights = {loss_weight(value, column) for value in given}
    if len(weights) > 1:
        raise BadLine(column, "bad_weight", f"A message names two weights: {', '.join(map(str, given))}.")
    return {"weight": weights.pop()} if weights - {1} else {}


def loss_weight(value: Any, column: str) -> float:
    """Return a weight of the loss from 0 to 1; `value` may be a number, a flag or a number as text.

    Raises BadLine otherwise.
    """
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        value = number_in(value)
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise BadLine(column, "bad_weight", f"weight is {value!r}; it must lie between 0 (not counted) and 1.")
    return int(value) if value in (0, 1) else float(value)


def number_in(text: str) -> Any:
    """Return the number that the text represents; the text itself if it represents none."""
    try:
        return float(text)
    except ValueError:
        return text


def tools_of(value: Any) -> list[Turn]:
    """Return tools in OpenAI's form from a list of tools, a single one, or the JSON of either.

    Bare functions, as in the older `functions` and in Anthropic's form, are converted. Raises BadLine for anything
    else.
    """
    tools = without_nulls(parsed_json(value, "tools"))
    tools = [tools] if isinstance(tools, dict) else tools
    tools = [parsed_json(tool, "tools") for tool in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadLine("tools", "bad_tools", "tools is not a list of {type, function}.")
    wrapped = [
        tool if "function" in tool else {"type": "function", "function": in_openais_words(tool)} for tool in tools
    ]
    if not all(
        isinstance(tool["function"], dict) and isinstance(tool["function"].get("name"), str) for tool in wrapped
    ):
        raise BadLine("tools", "bad_tools", "Each of tools needs a function with a name.")
    return wrapped


def in_openais_words(tool: Turn) -> Turn:
    """Return a function's definition in OpenAI's form; Anthropic's `input_schema` becomes `parameters`."""
    if "input_schema" not in tool or "parameters" in tool:
        return tool
    return {("parameters" if name == "input_schema" else name): value for name, value in tool.items()}


def with_system(turns: list[Turn], named: Turn) -> list[Turn]:
    """Return the turns after a system turn with the text of the record's column `system`, if it has one.

    Raises BadLine if they begin with a system turn already, and if the column is not text or too long.
    """
    system = named.get("system")
    if system is None or not str(system).strip():
        return turns
    if turns and turns[0]["role"] == SYSTEM:
        raise BadLine(
            "system", "two_systems", "There is a column system, and the messages begin with a system turn: keep one."
        )
    return [{"role": SYSTEM, "content": system_text(system)}, *turns]


def system_text(system: Any) -> str:
    """Return the text of a system column: a text, a list of parts of type text, or an object with either.

    Raises BadLine for anything else, and if it is blank or too long.
    """
    if isinstance(system, dict):
        system = next((system[name] for name in CONTENTS if name in system), system)
    return text_in({"system": text_of(system, "system") if isinstance(system, list) else system}, "system")


def tools_in(named: Turn) -> Turn:
    """Return {tools} if the record has some in `tools` or, without that column, `functions`; else {}.

    They are in OpenAI's form. Raises BadLine as `tools_of` does.
    """
    tools = named.get("tools", named.get("functions"))
    definitions = tools_of(tools) if tools not in (None, "", []) else []
    return {"tools": definitions} if definitions else {}


def refuse_tools(named: Turn) -> None:
    """Raise BadLine if a record without messages has tools."""
    for column in ("tools", "functions"):
        if named.get(column):
            raise BadLine(
                column, "tools_without_messages", f"{column} needs messages: a plain prompt cannot show tools."
            )
