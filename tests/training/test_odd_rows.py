"""Odd calls, reasoning, roles, labels, tables and line ends: read rightly, or refused by field and fix."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest

from tests.training.odd_files import (
    N,
    Odd,
    lines,
    parquet,
    prompts,
    question,
    reply,
    require_read,
    require_refused,
    talks,
)

OPENAI, SHAREGPT = "OpenAI messages", "ShareGPT"
JUDGED = "answers marked good or bad (label)"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}


def called(call: Any) -> bytes:
    """Chats whose answer is a call."""
    return lines(talks(lambda n: [question(n), {"role": "assistant", "tool_calls": [call]}], tools=TOOLS))


def shared_call(value: Any) -> bytes:
    """Chats in ShareGPT whose answer is a call of this text."""
    text = value if isinstance(value, str) else json.dumps(value)
    turns = talks(
        lambda n: [{"from": "human", "value": f"Q{n}"}, {"from": "function_call", "value": text}], "conversations"
    )
    return lines([{**row, "tools": json.dumps(TOOLS)} for row in turns])


def answered(**fields: Any) -> bytes:
    """Chats whose answer has these fields."""
    return lines(talks(lambda n: [question(n), reply(n, **fields)]))


def arrow(*, streams: bool, **columns: Any) -> bytes:
    sink, table = io.BytesIO(), pa.table(columns)
    with (pa.ipc.new_stream if streams else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def named_twice() -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_arrays(
        [pa.array(["Q"]), pa.array(["A"]), pa.array(["B"])], ["prompt", "completion", "completion"]
    )
    pa.parquet.write_table(table, sink)
    return sink.getvalue()


def tarred() -> bytes:
    sink, rows = io.BytesIO(), lines(prompts())
    with tarfile.open(fileobj=sink, mode="w") as archive:
        entry = tarfile.TarInfo("rows.jsonl")
        entry.size = len(rows)
        archive.addfile(entry, io.BytesIO(rows))
    return sink.getvalue()


Q = [f"Q{n}" for n in N]
ONE = '"arguments": {"n": 1}'
READ = {
    "a call's parameters": Odd("a.jsonl", called({"function": {"name": "f", "parameters": {"n": 1}}}), OPENAI, ONE),
    "a call's input": Odd("a.jsonl", called({"type": "tool_use", "name": "f", "input": {"n": 1}}), OPENAI, ONE),
    "a call without arguments": Odd("a.jsonl", called({"function": {"name": "f"}}), OPENAI, '"arguments": {}'),
    "a parsed call": Odd(
        "a.jsonl",
        called({**CALL, "function": {**CALL["function"], "parsed_arguments": {"n": 1}}}),  # type: ignore[dict-item]
        OPENAI,
        ONE,
    ),
    "ShareGPT's call by parameters": Odd("a.jsonl", shared_call({"name": "f", "parameters": {"n": 1}}), SHAREGPT, ONE),
    "ShareGPT's calls": Odd("a.jsonl", shared_call([{"name": "f", "arguments": '{"n": 1}'}] * 2), SHAREGPT, ONE),
    "tools of Anthropic": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n)], tools=[{"name": "f", "input_schema": {"type": "object"}}])),
        OPENAI,
        '"parameters": {"type": "object"}',
    ),
    "tools as JSON, each": Odd(
        "a.jsonl", lines(talks(lambda n: [question(n), reply(n)], tools=[json.dumps(TOOLS[0])])), OPENAI, '"tools"'
    ),
    "one thought in two fields": Odd("a.jsonl", answered(reasoning="x", reasoning_content="x"), OPENAI, '"x"'),
    "an empty thought": Odd("a.jsonl", answered(reasoning_content="", thinking=None), OPENAI),
    "a name of a user": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{**question(n), "name": "Ann"}, reply(n)])),
        OPENAI,
        warned="the field 'name' of messages is not used",
    ),
    "a user's turn to be trained": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{**question(n), "train": True}, reply(n)])),
        OPENAI,
        warned="the field 'train' of messages is not used",
    ),
    "labels of 1 and 0": Odd("a.jsonl", lines(prompts(label=1)), JUDGED, '"label": true'),
    "labels of 1 and 0 in CSV": Odd(
        "a.csv", b"prompt,completion,label\n" + b"".join(b"Q%d,A,0\n" % n for n in N), JUDGED
    ),
    "labels of floats": Odd("a.parquet", parquet(prompt=Q, completion=["A"] * 40, label=[1.0] * 40), JUDGED),
    "labels of classes": Odd("a.jsonl", lines(prompts(label="law")), warned="'label' is not used"),
    "documents as floats": Odd(
        "a.parquet", parquet(prompt=Q, completion=["A"] * 40, document=[float(n) for n in N]), first='"document": "'
    ),
    "NaN in a table": Odd(
        "a.parquet", parquet(prompt=Q, completion=["A"] * 40, system=[float("nan")] * 40, weight=[float("nan")] * 40)
    ),
    "an Arrow file": Odd("a.arrow", arrow(streams=False, prompt=Q, completion=["A"] * 40)),
    "an Arrow stream": Odd("a.arrow", arrow(streams=True, prompt=Q, completion=["A"] * 40)),
    "chats in Feather": Odd(
        "a.feather", arrow(streams=False, messages=[[question(n), reply(n)] for n in N]), OPENAI, "It is"
    ),
    "lines of the first Macintosh": Odd("a.jsonl", lines(prompts(), end="\r")),
    "CSV of the first Macintosh": Odd("a.csv", b"prompt,completion\r" + b"".join(b"Q%d,A\r" % n for n in N)),
    "a header with the delimiter in a name": Odd(
        "a.csv", b'prompt;completion;"a,b,c,d"\n' + b"".join(b"Q%d;A, b;x\n" % n for n in N), first="A, b"
    ),
    "a space behind each comma": Odd(
        "a.csv", b"prompt, completion\n" + b"".join(b'"Q%d", "A, b"\n' % n for n in N), first="A, b"
    ),
    "blank lines before the header": Odd("a.csv", b"\n\nprompt,completion\n" + b"".join(b"Q%d,A\n" % n for n in N)),
    "messages of Gemini": Odd(
        "a.jsonl",
        lines(
            talks(
                lambda n: [{"role": "user", "parts": [{"text": f"Q{n}"}]}, {"role": "model", "parts": [{"text": "A"}]}]
            )
        ),
        OPENAI,
        '"content": "A"',
    ),
    "two columns of conversations": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n)], conversations=[{"from": "human", "value": "Q"}])),
        OPENAI,
        warned="The column 'conversations' is not used (40 rows have it).",
    ),
    "words for an empty cell": Odd(
        "a.csv", b"prompt,completion,system,document\n" + b"".join(b"Q%d,A,nan,NULL\n" % n for n in N), first='"Q'
    ),
    "decimals": Odd(
        "a.parquet",
        parquet(prompt=Q, completion=["A"] * 40, weight=pa.array([1] * 40).cast(pa.decimal128(20, 1))),
    ),
    "a sequence of JSON texts": Odd("a.jsonl", b"\x1e" + lines(prompts(), end="\n\x1e")[:-1]),
    "a text in a wrong encoding": Odd(
        "a.jsonl", lines([{"prompt": f"Caf\u00c3\u00a9 {n}", "completion": "A"} for n in N]), warned="a wrong encoding"
    ),
    "UTF-32 without a mark, by choice": Odd("a.jsonl", lines(prompts(), "utf-32-be"), encoding="utf-32-be"),
    "right to left": Odd(
        "a.jsonl",
        lines([{"prompt": f"\u0645\u0631\u062d\u0628\u0627 {n}", "completion": "\u05e9\u05dc\u200f"} for n in N]),
        first="\u200f",
    ),
    "KTO of LLaMA-Factory": Odd(
        "a.jsonl",
        lines([{"instruction": f"Q{n}", "input": "", "output": "A", "kto_tag": False} for n in N]),
        JUDGED,
        '"label": false',
    ),
    "a label in words": Odd("a.jsonl", lines(prompts(label="Thumbs down")), JUDGED, '"label": false'),
    "a label that is a subject": Odd("a.jsonl", lines(prompts(label="positive")), warned="column 'label' is not used"),
    "a turn with a loss mask": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n, loss_mask=0), question(n), reply(n)])),
        OPENAI,
        '"weight": 0',
    ),
    "a turn that Axolotl does not train": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n, train_on_turn=False), question(n), reply(n)])),
        OPENAI,
        '"weight": 0',
    ),
    "a weight of the loss": Odd("a.jsonl", lines(prompts(loss_weight=0.5)), first='"weight": 0.5'),
    "a weight of the sample": Odd("a.csv", b"prompt,completion,sample_weight\n" + b"Q,A,0\n" * 40, first='"weight": 0'),
    "a system prompt": Odd("a.jsonl", lines(prompts(system_prompt="Be brief.")), first="Be brief."),
    "a system prompt beside a plain text": Odd(
        "a.jsonl",
        lines([{"text": f"T{n}", "system_prompt": "Be brief."} for n in N]),
        "text",
        warned="column 'system_prompt' is not used",
    ),
    "a system text in parts": Odd(
        "a.jsonl", lines(talks(lambda n: [question(n), reply(n)], system=[{"text": "Be brief."}])), OPENAI, "Be brief."
    ),
    "Gemini's system instruction": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n)], systemInstruction={"parts": [{"text": "Be brief."}]})),
        OPENAI,
        "Be brief.",
    ),
    "emoji of several letters": Odd("a.jsonl", lines(prompts("\U0001f469\u200d\U0001f467")), first="\u200d"),
}
REFUSED = {
    "a mask of characters": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n, train_detail=[{"begin_offset": 0, "train": False}])])),
        refused="messages holds train_detail",
    ),
    "a system text that is a number": Odd(
        "a.jsonl", lines(talks(lambda n: [question(n), reply(n)], system=3)), refused="system is a number"
    ),
    "a loss scale by name": Odd("a.jsonl", lines(prompts(loss_scale="high")), refused="weight is 'high'"),
    "UTF-32 without a mark": Odd("a.jsonl", lines(prompts(), "utf-32-le"), refused="choose encoding=utf-32-le"),
    "another delimiter": Odd("a.csv", b"prompt^completion\nQ^A\n", refused="'^' is no delimiter here: take a comma"),
    "a row inside of a column": Odd(
        "a.jsonl",
        lines([{"body": {"messages": [question(n), reply(n)]}} for n in N]),
        refused="no_form, body: The row has columns that are objects; messages stands inside of 'body'",
    ),
    "lists of lists": Odd(
        "a.jsonl", lines(talks(lambda n: [[question(n), reply(n)]])), refused="and a message is a list here"
    ),
    "a comma behind the last element": Odd(
        "a.json", b'[{"prompt": "Q", "completion": "A"},]', refused="There is a comma behind the last element"
    ),
    "a row of nulls": Odd("a.jsonl", b'{"text": null}\n', refused="Every column of the row is empty"),
    "a text of another name": Odd("a.jsonl", b'{"Content": "a"}\n', refused='{"text": "Content"}'),
    "a part of Gemini that is no text": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), {"role": "model", "parts": [{"functionCall": {"name": "f"}}]}])),
        refused="A part of a message is no text",
    ),
    "a call of another word": Odd(
        "a.jsonl",
        called({"function": {"name": "f", "argument": {"n": 1}}}),
        refused="bad_tool_call, messages: A call has 'argument', which nothing reads: it has name, arguments.",
    ),
    "a call with two arguments": Odd(
        "a.jsonl",
        called({"name": "f", "arguments": {}, "parameters": {}}),
        refused="has arguments and parameters: keep one",
    ),
    "ShareGPT's call as code": Odd(
        "a.jsonl", shared_call("f(n=1)"), refused="bad_tool_call, conversations: A function_call is JSON"
    ),
    "a user's calls": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{**question(n), "tool_calls": [CALL]}, reply(n)])),
        refused="not_of_role, messages: A message of the role user has tool_calls, which answers alone have.",
    ),
    "a user's reasoning": Odd(
        "a.jsonl", lines(talks(lambda n: [{**question(n), "reasoning": "x"}, reply(n)])), refused="has reasoning, which"
    ),
    "tools in a message": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{"role": "system", "content": "x", "tools": "[]"}, question(n), reply(n)])),
        refused="bad_tools, messages: A message holds tools: give them in a column tools",
    ),
    "reasoning as an object": Odd("a.jsonl", answered(reasoning={"text": "x"}), refused="reasoning is an object, not"),
    "reasoning as a list": Odd("a.jsonl", answered(thinking=["x"]), refused="thinking is a list, not text"),
    "two thoughts": Odd(
        "a.jsonl",
        answered(thinking="x", reasoning_content="y"),
        refused="two_thoughts, messages: An answer has reasoning_content and thinking, which differ: keep one.",
    ),
    "messages without roles": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{"human": "Q", "assistant": "A"}])),
        refused="and this message has none, but human, assistant",
    ),
    "messages in another column": Odd(
        "a.jsonl", lines(talks(lambda n: [question(n), reply(n)], "dialog")), refused='{"messages": "dialog"}'
    ),
    "an answer without a width": Odd("a.jsonl", lines(prompts("\u200b\ufeff")), refused="empty, completion"),
    "a turn without a width": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), {"role": "assistant", "content": "\u200b "}])),
        refused="empty, mes",
    ),
    "lists in a file of lines": Odd(
        "a.jsonl",
        b"".join(json.dumps([question(n), reply(n)]).encode() + b"\n" for n in N),
        refused='Write a conversation as {"messages": [...]}',
    ),
    "texts in an array": Odd("a.json", b'["a", "b"]', refused='Write a text as {"text": ...}'),
    "Python's way to write a list": Odd(
        "a.csv", b"messages\n\"[{'role': 'user', 'content': 'Q'}]\"\n", refused="write it with json.dumps"
    ),
    "a Parquet column twice": Odd("a.parquet", named_twice(), refused="the column 'completion' twice"),
    "Parquet by another name": Odd("a.jsonl", parquet(prompt=Q), refused="choose format=parquet"),
    "Arrow by another name": Odd("a.csv", arrow(streams=False, prompt=Q), refused="choose format=arrow"),
    "Parquet called Arrow": Odd("a.arrow", parquet(prompt=Q), refused="This Arrow file cannot be read"),
    "an Arrow file cut off": Odd(
        "a.arrow", arrow(streams=False, prompt=Q)[:-40], refused="This Arrow file cannot be read"
    ),
    "a tar archive": Odd("a.jsonl", tarred(), refused="The file is a tar archive"),
    "a packed tar archive": Odd("a.jsonl.gz", gzip.compress(tarred()), refused="The file is a tar archive"),
    "packed twice": Odd("a.jsonl.gz", gzip.compress(gzip.compress(b"{}")), refused="packed twice (gzip, then gzip)"),
    "a PDF": Odd("a.txt", b"%PDF-1.7\n", refused="The file is a PDF: send the table in it as CSV"),
    "cells without a header": Odd("a.csv", b"rows\nQ,A\n", refused="The first line names the columns"),
}


@pytest.mark.parametrize("kind", READ)
def test_an_odd_row_is_read(kind: str, tmp_path: Path) -> None:
    require_read(READ[kind], tmp_path)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_odd_row_is_refused_with_the_way_out(kind: str, tmp_path: Path) -> None:
    require_refused(REFUSED[kind], tmp_path)
