"""A tokenizer's chat template: it renders conversations and refuses those of which it leaves something out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from serving_client.chat_conventions import REASONING, REFUSALS

Turn = dict[str, Any]
# Characters of a content that no markup holds by chance.
TELLING = 24
# An end of turn as templates write it, for tokenizers that do not call it special.
WRITTEN_END = r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,20}\]"
# Tokens by which families of models end a turn or a text, whatever their tokenizer calls its end token.
NAMED_END = re.compile(
    r"(?i)</s>|<turn\|>|<[|\uff5c]?(?:eo[admst]|eo[dmt]_id|im_end|end|return|call|endoftext|end_of_\w+(?<!role)|"
    r"end\u2581of\u2581\w+)[|\uff5c]?>"
)


class ChatError(ValueError):
    """Raised when a template cannot render the conversation, or leaves out a part of it; the message says what."""


def prompt_text(messages: Sequence[Turn], tools: list[Turn] | None, tokenizer: Any) -> str:
    """Return the conversation as text up to the answer that is to come, as an engine renders it.

    Raises ChatError if the tokenizer has no chat template, or the template refuses the conversation or renders nothing.
    """
    return Template(tokenizer, tools).text(messages, add_generation_prompt=True)


@dataclass
class Template:
    """A tokenizer's chat template for a row with these tools. Raises ChatError if the tokenizer has none."""

    tokenizer: Any
    tools: list[Turn] | None
    source: str = field(init=False)
    opening: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            message = "The rows hold messages, but the model's tokenizer has no chat template: give prompts instead."
            raise ChatError(message)
        self.source = str(self.tokenizer.get_chat_template(tools=self.tools))

    @property
    def name(self) -> str:
        """Return the name of the template's model, for error messages."""
        return Path(str(getattr(self.tokenizer, "name_or_path", ""))).name or "this model"

    def opens_with(self, tag: str, earlier: Sequence[Turn]) -> bool:
        """Return True if the tag opens the next answer, and therefore does not end the one before.

        `earlier` are the turns before an answer; those of the first call decide for all later ones.
        """
        if self.opening is None:
            # One rendering for all answers of a conversation: each begins with the same tag.
            self.opening = generation_prompt(self, earlier).lstrip()
        return self.opening.startswith(tag.strip())

    @property
    def reasoning_word(self) -> str:
        """Return the name of the field from which the template reads an answer's reasoning.

        It is the first of REASONING if the template reads none.
        """
        return next((name for name in REASONING if re.search(rf"[.'\"]{name}\b", self.source)), REASONING[0])

    @cached_property
    def end(self) -> re.Pattern[str]:
        """Return the pattern of an end of turn: a special token or what looks like one, with white space before it."""
        special = sorted(map(re.escape, self.tokenizer.all_special_tokens), key=len, reverse=True)
        return re.compile(rf"\s*(?:{'|'.join([*special, WRITTEN_END])})")

    def text(self, messages: Sequence[Turn], **options: Any) -> str:
        """Return the rendered messages; `options` are those of the tokenizer's `apply_chat_template`.

        Raises ChatError if the template refuses them or renders only white space.
        """
        try:
            text = self.apply(messages, **options)
        except REFUSALS as error:
            message = f"The chat template of {self.name} refuses the conversation: {str(error).splitlines()[0]}"
            raise ChatError(message) from None
        if not text.strip():
            raise ChatError(f"The chat template of {self.name} renders no text.")
        return text

    def apply(self, messages: Sequence[Turn], **options: Any) -> str:
        """Return the rendered messages, with the arguments of calls as objects or, if that fails, as JSON text.

        `options` are those of the tokenizer's `apply_chat_template`. Raises one of REFUSALS.
        """
        try:
            return self.once(messages, as_text=False, **options)
        except REFUSALS:
            if not any(turn.get("tool_calls") for turn in messages):
                raise
            return self.once(messages, as_text=True, **options)

    def once(self, messages: Sequence[Turn], *, as_text: bool, **options: Any) -> str:
        """Return the rendered messages, with reasoning in the template's own field.

        With `as_text` the arguments of calls are JSON text, otherwise as they are given. Raises one of REFUSALS.
        """
        turns = [self.worded(turn, as_text=as_text) for turn in messages]
        return str(self.tokenizer.apply_chat_template(turns, tools=self.tools, tokenize=False, **options))

    def worded(self, turn: Turn, *, as_text: bool) -> Turn:
        """Return a turn with the fields that the template knows: reasoning in its own field, and no weight.

        With `as_text` the arguments of calls become JSON text.
        """
        plain = {
            name: value for name, value in turn.items() if name not in ("weight", "tool_calls", "reasoning_content")
        }
        if "reasoning_content" in turn:
            plain[self.reasoning_word] = turn["reasoning_content"]
        if calls := turn.get("tool_calls"):
            plain["tool_calls"] = [with_arguments(call, as_text=as_text) for call in calls]
        return plain


def with_arguments(call: Turn, *, as_text: bool) -> Turn:
    """Return a copy of a call with its arguments, {} if it has none; with `as_text` they become JSON text."""
    function = call["function"]
    arguments = function.get("arguments", {})
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def require_everything(template: Template, messages: Sequence[Turn], text: str) -> None:
    """Raise ChatError if the template leaves out the tools, or the text of a system, user or tool message.

    `text` is the rendered conversation.
    """
    if template.tools and is_same_without_tools(template, messages, text):
        raise lacking(template, "tools")
    for place, turn in enumerate(messages):
        content = (turn.get("content") or "").strip()
        if turn["role"] == "assistant" or not content or (len(content) >= TELLING and content in text):
            continue
        word = unused_word(text)
        changed = [*messages[:place], {**turn, "content": word}, *messages[place + 1 :]]
        if word.casefold() not in template.text(changed).casefold():
            raise lacking(template, f"messages of the role {turn['role']}")


def is_same_without_tools(template: Template, messages: Sequence[Turn], text: str) -> bool:
    """Return True if the template renders the same text without the tools."""
    try:
        return Template(template.tokenizer, None).apply(messages) == text
    except REFUSALS:
        return False


def lacking(template: Template, what: str) -> ChatError:
    """Return, without raising it, the error of a template that does not render `what`."""
    return ChatError(
        f"The chat template of {template.name} does not render {what}: take another base model or leave it out."
    )


def unused_word(text: str, number: int = 0) -> str:
    """Return a word that does not occur in the text; it ends with the number and "Y"."""
    stem = "Zqx"
    while stem in text:
        stem += "q"
    return f"{stem}{number}Y"


def renders_reasoning(template: Template) -> bool:
    """Return True if the template renders the reasoning of the last answer; many do not render that of earlier ones."""
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", "reasoning_content": "Zqxq"}]
    try:
        return "Zqxq" in template.apply(turns)
    except REFUSALS:
        return False


def is_end(token: int, tokenizer: Any) -> bool:
    """Return True for a token that ends a turn or a text.

    That is the tokenizer's end token, one that a known family of models ends by (NAMED_END), or a special token with
    which the chat template ends an answer. The start and the unknown token never do unless they are the end token.
    """
    if token == tokenizer.eos_token_id:
        return True
    name = str(tokenizer.convert_ids_to_tokens(token))
    if token in (tokenizer.unk_token_id, tokenizer.bos_token_id):
        return False
    if NAMED_END.fullmatch(name):
        return True
    return token in tokenizer.all_special_ids and bool(tokenizer.chat_template) and closes_answers(name, tokenizer)


def closes_answers(name: str, tokenizer: Any) -> bool:
    """Return True if the chat template ends an answer with the token of this name."""
    word = unused_word("")
    try:
        text = Template(tokenizer, None).apply(
            [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": word}]
        )
    except REFUSALS:
        return False
    return text.partition(word)[2].lstrip().startswith(name)


def generation_prompt(template: Template, earlier: Sequence[Turn]) -> str:
    """Return the text that the template adds after the turns `earlier` for an answer that is to come.

    "" if that cannot be determined.
    """
    try:
        without, with_prompt = template.apply(earlier), template.apply(earlier, add_generation_prompt=True)
    except REFUSALS:
        return ""
    return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""
