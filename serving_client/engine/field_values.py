"""Checks of single fields of a completion request; each error names the field at fault."""

from __future__ import annotations

from collections import Counter
from typing import Any

from serving_client.engine.errors import bad_request

MOST_PROMPTS = 64
MOST_MESSAGES = 4096
# Each is looked for at every token, by the thread that serves all requests.
MOST_STOPS, LONGEST_STOP, MOST_TOKENS_NAMED = 16, 1000, 1024
# Parts of a message: a chat's, and those of responses that clients send back.
TEXT_PARTS = ("text", "input_text", "output_text")
# Fields of a part that change nothing that is read: what may be cached, and the notes of an answer that is sent back.
PART_NOTES = {"type", "text", "annotations", "cache_control", "logprobs"}
# Type of a response format -> its fields.
FORMS = {"text": {"type"}, "json_object": {"type"}, "json_schema": {"type", "json_schema"}}
# Fields of a json_schema: the answer is always held to it, whatever `strict` says.
SCHEMA_FIELDS = {"name", "description", "schema", "strict"}
Json = dict[str, Any]
Prompt = str | list[int]


def prompts_of(prompt: object) -> list[Prompt]:
    """Return the prompts of a field that holds one or several, each a text or a list of token ids.

    Raises ApiError 400 for anything else or more than MOST_PROMPTS.
    """
    listed = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else [prompt]
    if len(listed) > MOST_PROMPTS:
        raise bad_request(f"'prompt' may hold {MOST_PROMPTS} prompts: send more requests.", "prompt")
    return [item if isinstance(item, str) else tokens_of(item, "prompt") for item in listed]


def tokens_of(tokens: object, field: str) -> list[int]:
    """Return the list of token ids. Raises ApiError 400, naming `field`, for anything else."""
    if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
        raise bad_request(f"'{field}' must be a list of token ids.", field)
    return tokens


def few_tokens_of(tokens: object, field: str) -> list[int]:
    """Return the list of token ids, at most MOST_TOKENS_NAMED. Raises ApiError 400, naming `field`, otherwise."""
    listed = tokens_of(tokens, field)
    if len(listed) > MOST_TOKENS_NAMED:
        raise bad_request(f"'{field}' may name {MOST_TOKENS_NAMED} tokens.", field)
    return listed


def messages_of(messages: object) -> list[dict[str, Any]]:
    """Return the messages, each with its content as one text. Raises ApiError 400 for none, too many or bad ones."""
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be a list with at least one message.", "messages")
    if len(messages) > MOST_MESSAGES:
        raise bad_request(f"'messages' may hold {MOST_MESSAGES} messages.", "messages")
    return [message_of(message) for message in messages]


def message_of(message: object) -> dict[str, Any]:
    """Return a message with its content as one text and its calls as a list.

    Raises ApiError 400 for one without a role, or with malformed content or calls.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise bad_request("Each message needs a 'role' and a 'content'.", "messages")
    return {**message, "content": content_of(message.get("content")), "tool_calls": calls_of(message.get("tool_calls"))}


def calls_of(calls: object) -> list[dict[str, Any]]:
    """Return the tool calls of a message; an empty list for none. Raises ApiError 400 for malformed ones."""
    listed = calls or []
    if not isinstance(listed, list) or not all(is_function(call) for call in listed):
        raise bad_request("Each of 'tool_calls' needs a function with a name and arguments.", "messages")
    return list(listed)


def tools_of(tools: object) -> list[dict[str, Any]] | None:
    """Return the tools as they are; None if there are none.

    Raises ApiError 400 for a malformed tool, one that is no function, and two functions of one name.
    """
    if not tools:
        return None
    if not isinstance(tools, list):
        raise bad_request("'tools' must be a list.", "tools")
    for tool in tools:
        kind = tool.get("type", "function") if isinstance(tool, dict) else "function"
        if kind != "function":
            raise bad_request(f"One of 'tools' is of type {str(kind)[:40]!r}: only functions can be called.", "tools")
        if not is_function(tool):
            raise bad_request("Each of 'tools' needs a function with a name.", "tools")
    names = Counter(tool["function"]["name"] for tool in tools)
    if twice := [name for name, count in names.items() if count > 1]:
        raise bad_request(f"Two of 'tools' are named {twice[0][:100]!r}: an answer could mean either.", "tools")
    return tools


def is_function(item: object) -> bool:
    """Return True for a tool or a call whose function has a name, and an object as parameters if it has any."""
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("parameters") or {}, dict):
        return False
    return isinstance(function.get("name"), str) and bool(function["name"])


def content_of(content: object) -> str:
    """Return a message's content as one text; the texts of a list of parts are joined, and None is "".

    Raises ApiError 400 for any other content, and for parts that are no text or have a field that nothing reads.
    """
    parts = content if isinstance(content, list) else [{"text": "" if content is None else content}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    for part, text in zip(parts, texts, strict=True):
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in TEXT_PARTS:
            message = f"A part of 'content' has the type {str(kind)[:40]!r}: the embedded engine reads text alone."
            raise bad_request(message, "messages")
        if not isinstance(text, str):
            raise bad_request("A message's 'content' must be a string, or parts of type text.", "messages")
        if isinstance(part, dict) and (unread := part.keys() - PART_NOTES):
            raise bad_request(f"A part of 'content' has {min(unread)[:40]!r}, which nothing reads.", "messages")
    return "".join(str(text) for text in texts)


def choice_of(choice: object) -> str | None:
    """Return `none`, `auto`, `required`, or the name of the function to call. Raises ApiError 400 for anything else."""
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else choice
    if not isinstance(name, str) or (name is choice and name not in ("none", "auto", "required")):
        raise bad_request("'tool_choice' must be none, auto, required or a function of 'tools'.", "tool_choice")
    return name


def schema_of(form: object) -> Json | None:
    """Return the JSON Schema of a `response_format`; None for plain text.

    Raises ApiError 400 for an unknown type or field, and for a json_schema without a schema.
    """
    kind = form.get("type") if isinstance(form, dict) else None
    fields = FORMS.get(str(kind))
    if isinstance(form, dict) and fields and (unread := form.keys() - fields):
        message = f"'response_format' of type {kind} has no {min(unread)[:40]!r}: a schema is given by json_schema."
        raise bad_request(message, "response_format")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    inside = form.get("json_schema") if isinstance(form, dict) and kind == "json_schema" else None
    schema = inside.get("schema") if isinstance(inside, dict) else None
    if not isinstance(schema, dict):
        message = "'response_format' must be of type text, json_object, or json_schema with a schema."
        raise bad_request(message, "response_format")
    require_schema_fields(inside or {})
    return schema


def require_schema_fields(inside: Json) -> None:
    """Raise ApiError 400 for a field that a json_schema does not have, and for a `strict` that is no boolean."""
    if unread := inside.keys() - SCHEMA_FIELDS:
        message = f"'json_schema' has no {min(unread)[:40]!r}: the schema itself stands in its 'schema'."
        raise bad_request(message, "response_format")
    if not isinstance(inside.get("strict"), bool | None):
        raise bad_request("The 'strict' of a 'json_schema' must be true or false.", "response_format")


def stops_of(stop: object) -> tuple[str, ...]:
    """Return the texts that end an answer, of a field that holds one, a list or None.

    Raises ApiError 400 for anything else, and for empty, too many or too long texts.
    """
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(item, str) and item for item in stops):
        raise bad_request("'stop' must be a string or a list of strings, none of them empty.", "stop")
    if len(stops) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
        raise bad_request(f"'stop' may hold {MOST_STOPS} strings of up to {LONGEST_STOP} characters.", "stop")
    return tuple(stops)


def bias_of(wished: object) -> dict[int, Any]:
    """Return the numbers to add to the logits, by token id; the numbers are not checked here.

    Raises ApiError 400 for anything but an object of token ids, or more than MOST_TOKENS_NAMED.
    """
    if not isinstance(wished, dict):
        raise bad_request("'logit_bias' must be an object of token ids.", "logit_bias")
    if len(wished) > MOST_TOKENS_NAMED:
        raise bad_request(f"'logit_bias' may name {MOST_TOKENS_NAMED} tokens.", "logit_bias")
    if not all(token.isdecimal() and token.isascii() and len(token) < 19 for token in wished):
        raise bad_request("The names in 'logit_bias' must be token ids.", "logit_bias")
    return {int(token): number for token, number in wished.items()}
