"""Prompts of checkpoints and evaluations are asked as the training rendered them."""

from __future__ import annotations

from tests.lm.chat_tokenizer import trl_tokenizer
from tests.tiny_model import make_tokenizer
from training.lm.chat_template import prompt_text
from training.recipes.compare import question_and_answer, question_of, tokens_of

TALK = [{"role": "user", "content": "a bank"}, {"role": "assistant", "content": "shall report"}]


def text_of(question: dict) -> str:
    return str(make_tokenizer().decode(tokens_of(question, make_tokenizer())["input_ids"][0]))


def test_a_chat_is_asked_in_its_template_and_a_prompt_is_not() -> None:
    assert text_of(question_of("a bank", is_chat=True)) == "<user> a bank <end> <assistant>"
    assert text_of(question_of("a bank", is_chat=False)) == "a bank"


def test_a_conversation_is_asked_up_to_its_last_answer() -> None:
    row = {
        "messages": [*TALK, {"role": "user", "content": "the risk"}, {"role": "assistant", "content": "within hours"}]
    }
    question, answer = question_and_answer(row) or ({}, "")
    assert text_of(question) == "<user> a bank <end> <assistant> shall report <end> <user> the risk <end> <assistant>"
    assert answer == "within hours"


def test_texts_and_calls_are_no_questions() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "x", "arguments": {}}}]}
    assert question_and_answer({"text": "a"}) is None
    assert question_and_answer({"messages": [TALK[0], call]}) is None


def test_tools_are_shown_with_the_question() -> None:
    tools = [{"type": "function", "function": {"name": "lookup", "description": "d", "parameters": {}}}]
    assert "lookup" in prompt_text(TALK[:1], tools, trl_tokenizer("qwen3"))
