"""Other spellings, encodings, containers and mistakes than those of tests/cases/: read alike, or refused by name."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import pyarrow as pa
import pytest

from tests.training.odd_files import (
    N,
    Odd,
    lines,
    parquet,
    pretty,
    prompts,
    question,
    reply,
    require_read,
    require_refused,
    talks,
    zipped,
)

OPENAI, SHAREGPT = "OpenAI messages", "ShareGPT"
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
READ = {
    "roles in capitals": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{"role": "User", "content": f"Q{n}"}, {"role": "ASSISTANT", "content": "A"}])),
        OPENAI,
        '"role": "assistant"',
    ),
    "an assistant of another name": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{"from": "human", "value": f"Q{n}"}, {"from": "bing", "value": "A"}], "conversations")),
        SHAREGPT,
        '"role": "assistant"',
    ),
    "roles of OpenAI in ShareGPT": Odd(
        "a.jsonl",
        lines(
            talks(lambda n: [{"from": "user", "value": f"Q{n}"}, {"from": "assistant", "value": "A"}], "conversations")
        ),
        SHAREGPT,
    ),
    "messages called conversations": Odd(
        "a.jsonl", lines(talks(lambda n: [question(n), reply(n)], "conversations")), OPENAI
    ),
    "tools as JSON text": Odd(
        "a.jsonl",
        lines(
            talks(
                lambda n: [question(n), {"role": "assistant", "content": None, "tool_calls": [CALL]}],
                tools=json.dumps(TOOLS),
            )
        ),
        OPENAI,
        '"arguments": {"n": 1}',
    ),
    "one bare tool": Odd(
        "a.jsonl", lines(talks(lambda n: [question(n), reply(n)], tools={"name": "f"})), OPENAI, '"type": "function"'
    ),
    "functions and their old calls": Odd(
        "a.jsonl",
        lines(
            talks(
                lambda n: [
                    question(n),
                    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                    {"role": "function", "name": "f", "content": "3"},
                    reply(n),
                ],
                functions=[{"name": "f"}],
            )
        ),
        OPENAI,
        '"tool_calls"',
    ),
    "arguments that are no JSON": Odd(
        "a.jsonl",
        lines(
            talks(
                lambda n: [
                    question(n),
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{n: 1"}}]},
                ],
                tools=TOOLS,
            )
        ),
        OPENAI,
        warned="the arguments of a call are not JSON",
    ),
    "a mark and CRLF around a chat": Odd(
        "a.jsonl", lines(talks(lambda n: [question(n), reply(n)]), end="\r\n", mark=b"\xef\xbb\xbf"), OPENAI
    ),
    "nulls at every depth": Odd(
        "a.jsonl",
        lines(
            talks(lambda n: [{**question(n), "tool_calls": None}, reply(n, weight=None, tool_calls=None)], tools=None)
        ),
        OPENAI,
        '"content": "It is 0."',
    ),
    "chats and prompts in one file": Odd(
        "a.jsonl",
        lines([*prompts()[:20], *talks(lambda n: [question(n), reply(n)])[20:]]),
        "prompt and completion (20 rows), OpenAI messages (20 rows)",
    ),
    "messages beside a prompt": Odd(
        "a.jsonl", lines(talks(lambda n: [question(n), reply(n)], prompt="P")), OPENAI, warned="'prompt' is not used"
    ),
    "a weight as text": Odd(
        "a.jsonl", lines(talks(lambda n: [question(n), reply(n, weight="0")])), OPENAI, '"weight": 0'
    ),
    "a turn not to be trained": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n, train=False), question(n), reply(n)])),
        OPENAI,
        '"weight": 0',
    ),
    "parts of text in the Responses' spelling": Odd(
        "a.jsonl",
        lines(
            talks(
                lambda n: [
                    {"role": "user", "content": [{"type": "input_text", "text": f"Q{n}"}]},
                    {"role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
                ]
            )
        ),
        OPENAI,
        '"content": "A"',
    ),
    "earlier turns in history": Odd(
        "a.jsonl", lines([{"instruction": f"I{n}", "output": "A", "history": [["q", "a"]]} for n in N]), "Alpaca", '"q"'
    ),
    "UTF-16, big end first": Odd("a.jsonl", lines(prompts(), "utf-16-be", mark=b"\xfe\xff"), first="é"),
    "UTF-32": Odd("a.jsonl", lines(prompts(), "utf-32-le", mark=b"\xff\xfe\x00\x00"), first="é"),
    "UTF-16 without a mark, by choice": Odd("a.jsonl", lines(prompts(), "utf-16-le"), first="é", encoding="utf-16-le"),
    "objects over several lines": Odd("a.json", pretty(prompts())),
    "chats over several lines": Odd("a.json", pretty(talks(lambda n: [question(n), reply(n)])), OPENAI),
    "an object of arrays behind a nested one": Odd(
        "a.json", json.dumps({"meta": {"by": {"who": "us"}}, "data": prompts()}, indent=1).encode()
    ),
    "arrays called train and test": Odd(
        "a.json", json.dumps({"train": prompts()[:36], "test": prompts()[36:]}, indent=1).encode()
    ),
    "bzip2": Odd("a.jsonl.bz2", bz2.compress(lines(prompts()))),
    "a spreadsheet's line of its delimiter": Odd(
        "a.csv", b"sep=;\r\nprompt;completion\r\n" + b"".join(b"Q%d;A, or B\r\n" % n for n in N), first="A, or B"
    ),
    "cells with quotes and lines": Odd(
        "a.csv", b"prompt,completion\n" + b"".join(b'"Q%d\nline","A, ""b"""\n' % n for n in N), first='A, \\"b\\"'
    ),
    "tabs": Odd("a.tsv", b"prompt\tcompletion\n" + b"".join(b"Q%d\tA\n" % n for n in N)),
    "messages as JSON in a cell": Odd(
        "a.csv",
        b"messages\n"
        + b"".join(b'"%s"\n' % json.dumps([question(n), reply(n)]).replace('"', '""').encode() for n in N),
        OPENAI,
    ),
    "bytes in Parquet": Odd("a.parquet", parquet(prompt=[f"Q{n}".encode() for n in N], completion=[b"A"] * 40)),
    "a dictionary in Parquet": Odd(
        "a.parquet", parquet(prompt=[f"Q{n}" for n in N], completion=pa.array(["A"] * 40).dictionary_encode())
    ),
    "ShareGPT in Parquet": Odd(
        "a.parquet",
        parquet(conversations=[[{"from": "human", "value": f"Q{n}"}, {"from": "gpt", "value": "A"}] for n in N]),
        SHAREGPT,
    ),
    "no line": Odd("a.jsonl", b"", "", rows=0),
    "blank lines alone": Odd("a.jsonl", b"\n \n\n", "", rows=0),
    "an empty array": Odd("a.json", b"[]", "", rows=0),
    "a header alone": Odd("a.csv", b"prompt,completion\n", "", rows=0),
}
READ |= {
    "ModelScope's rejected answer": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n)], rejected_response="I do not know.", system="Be brief.")),
        "preference pairs (chosen, rejected)",
        '"rejected": [{"content": "I do not know.", "role": "assistant"}]',
    ),
    "ModelScope's rejected conversation": Odd(
        "a.jsonl",
        lines([{"messages": [question(n), reply(n)], "rejected_messages": [question(n), reply(n + 99)]} for n in N]),
        "preference pairs (chosen, rejected)",
        '"rejected": [{"content": "It is ',
    ),
    "facts beside the rows": Odd(
        "a.json",
        json.dumps({"version": "1", "data": prompts(), "info": {"by": "us"}}).encode(),
        warned="The column 'info (beside the rows)' is not used (1 row has it). The column 'version (beside the",
    ),
    "facts beside the rows, over several lines": Odd(
        "a.json",
        json.dumps({"name": {"a": 1}, "data": prompts()}, indent=1).encode(),
        warned="The column 'name (beside the rows)' is not used",
    ),
    "a fact of the request": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n)], parallel_tool_calls=False)),
        OPENAI,
        warned="The column 'parallel_tool_calls' is not used (40 rows have it)",
    ),
    "a field of a part": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{"role": "user", "content": [{"type": "text", "text": f"Q{n}", "tone": 1}]}, reply(n)])),
        OPENAI,
        warned="the field 'content.tone' of messages is not used",
    ),
    "a field of a preferred answer": Odd(
        "a.jsonl",
        lines([{"prompt": f"Q{n}", "chosen": [reply(n, mood="good")], "rejected": "No."} for n in N]),
        "preference pairs (chosen, rejected)",
        warned="the field 'mood' of messages is not used",
    ),
    "a field of TRL's prompt": Odd(
        "a.jsonl",
        lines([{"prompt": [{**question(n), "mood": 1}], "completion": [reply(n)]} for n in N]),
        "TRL conversational prompt and completion",
        warned="the field 'mood' of messages is not used",
    ),
}
REFUSED = {
    "a channel of thoughts": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n, channel="analysis"), reply(n, channel="final")])),
        refused="A message is in the channel 'analysis': write thoughts as reasoning_content",
    ),
    "words to a tool": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n, recipient="browser")])),
        refused="A message is for the recipient 'browser': write calls of tools as tool_calls",
    ),
    "earlier turns beside a prompt": Odd(
        "a.jsonl", lines(prompts(history=[["q", "a"]])), refused="history_without_instruction, history: Earlier turns"
    ),
    "earlier turns beside other names": Odd(
        "a.jsonl",
        lines([{"query": f"Q{n}", "response": "A", "history": [["q", "a"]]} for n in N]),
        refused='work: {"instruction": "query", "output": "response"}',
    ),
    "other rows beside the rows": Odd(
        "a.json",
        json.dumps({"data": prompts(), "extra": prompts()}).encode(),
        refused="beside_rows, extra: 'extra' holds objects beside the rows",
    ),
    "a system text beside the rows": Odd(
        "a.json",
        json.dumps({"system": "Be brief.", "data": prompts()}, indent=1).encode(),
        refused="'system' stands beside the rows: write it into each row",
    ),
    "columns in place of rows": Odd(
        "a.json",
        json.dumps({"prompt": ["Q"] * 40, "completion": ["A"] * 40}).encode(),
        refused="prompt is a list, not text: write a row for each of its texts",
    ),
    "a number of 5,000 digits": Odd(
        "a.jsonl",
        b'{"prompt": "Q", "completion": "A", "id": %b}' % (b"9" * 5000),
        refused="over 4,300 digits; write it",
    ),
    "numbers as roles": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{"role": 1, "content": "Q"}, {"role": 2, "content": "A"}])),
        refused="bad_role, messages: A message's role is system, developer, user, assistant or tool, not 1",
    ),
    "texts as messages": Odd("a.jsonl", lines(talks(lambda n: ["Q", "A"])), refused="A message's role is system"),
    "a part that is an image": Odd(
        "a.jsonl",
        lines(talks(lambda n: [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, reply(n)])),
        refused="A part of a message is of type 'image_url'; only text is trained",
    ),
    "a column of images": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n)], images=["a.png"])),
        refused="not_text, images: The row has images, and only text is trained",
    ),
    "an image beside ShareGPT": Odd(
        "a.jsonl",
        lines(
            talks(
                lambda n: [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A"}],
                "conversations",
                image="x",
            )
        ),
        refused="not_text, image: The row has image",
    ),
    "a name twice": Odd(
        "a.jsonl",
        b'{"prompt": "Q", "prompt": "R", "completion": "A"}\n' * 40,
        refused="name_twice, prompt: An object has 'prompt' twice: keep one",
    ),
    "a name twice within": Odd(
        "a.json",
        b'[{"messages": [{"role": "user", "content": "Q", "content": "R"}]}]',
        refused="name_twice, content: An object has 'content' twice",
    ),
    "a huge row": Odd("a.jsonl", lines(prompts("x" * 5 * 2**20)[:1]), refused="line_too_long"),
    "a weight of two": Odd(
        "a.jsonl",
        lines(talks(lambda n: [question(n), reply(n, weight=2)])),
        refused="weight is 2; it must lie between 0",
    ),
    "a list as completion": Odd(
        "a.jsonl", lines(prompts(["A", "B"])), refused="not_text, completion: completion is a list, not text"
    ),
    "numbers as completion": Odd("a.jsonl", lines(prompts(3)), refused="not_text, completion: completion is a number"),
    "other names in capitals": Odd(
        "a.csv",
        b" Prompt ,Completion\n" + b"Q,A\n" * 40,
        refused='This mapping would work: {"prompt": " Prompt ", "completion": "Completion"}',
    ),
    "two objects on a line": Odd(
        "a.jsonl", json.dumps(prompts()[0]).encode() * 2, refused="Write one object a line, with no comma behind it"
    ),
    "commas behind the lines": Odd("a.jsonl", lines(prompts(), end=",\n"), refused="with no comma behind it"),
    "objects over several lines, cut off": Odd("a.json", pretty(prompts())[:-9], refused="line 40, not_json"),
    "more cells than columns": Odd(
        "a.csv",
        b"prompt,completion\nQ,A,B\n",
        refused="line 2, wrong_cells, : The record has 3 cells, the header has 2",
    ),
    "a column twice": Odd("a.csv", b"prompt,completion,prompt\nQ,A,B\n", refused="The header names a column twice"),
    "a wrong cell behind the line of a delimiter": Odd(
        "a.csv", b"sep=;\nprompt;completion\nQ;A\nQ\n", refused="line 4, wrong_cells"
    ),
    "UTF-16 without a mark": Odd("a.jsonl", lines(prompts(), "utf-16-le"), refused="choose encoding=utf-16-le"),
    "letters alone in UTF-16": Odd(
        "a.csv", "prompt,completion\nQ,A\n".encode("utf-16-be"), refused="choose encoding=utf-16-be"
    ),
    "a zip archive by another name": Odd(
        "a.jsonl", zipped(), refused="The file is a zip archive or an office document"
    ),
    "a spreadsheet by another name": Odd("a.csv", zipped(), refused="send the table in it as CSV"),
    "half a character": Odd("a.jsonl", b'{"prompt": "Q \\ud800", "completion": "A"}\n', refused="half a character"),
    "an answer that is missing": Odd("a.jsonl", lines(talks(lambda n: [question(n)])), refused="no_answer"),
    "a split that is none": Odd("a.jsonl", lines(prompts(split="fold3")), refused="split is 'fold3'"),
}


@pytest.mark.parametrize("kind", READ)
def test_an_odd_file_is_read(kind: str, tmp_path: Path) -> None:
    require_read(READ[kind], tmp_path)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_odd_file_is_refused_with_the_way_out(kind: str, tmp_path: Path) -> None:
    require_refused(REFUSED[kind], tmp_path)
