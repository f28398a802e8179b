"""A dataset as a training reads it: the chat template's exact string, what the loss counts, and what is cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import Project, User
from registry.models import BaseModel
from tests.builders import write_jsonl
from tests.lm.chat_tokenizer import trl_tokenizer
from tests.markup import markup
from tests.tiny_model import make_tokenizer, save_base_model
from training.datasets import row_preview
from training.models import Dataset

CHAT = [{"role": "user", "content": "the bank"}, {"role": "assistant", "content": "shall report each incident"}]


def joined(row: row_preview.Rendered, kind: str = "") -> str:
    return "".join(span.text for span in row.spans if kind in ("", span.kind))


def test_a_chat_is_shown_as_its_template_renders_it() -> None:
    tokenizer = make_tokenizer()
    row = row_preview.rendered({"messages": CHAT}, tokenizer, 100)
    assert joined(row).split() == tokenizer.apply_chat_template(CHAT, tokenize=False).split()
    assert joined(row, "counted").split() == ["shall", "report", "each", "incident", "<end>"]
    assert (row.tokens, row.counted) == (10, 5)


def test_what_lies_behind_max_length_is_cut_and_not_counted() -> None:
    row = row_preview.rendered({"prompt": "the bank", "completion": "shall report each"}, make_tokenizer(), 4)
    assert [(span.kind, span.text.split()) for span in row.spans] == [
        ("read", ["the", "bank"]),
        ("counted", ["shall", "report"]),
        ("cut", ["each", "<end>"]),
    ]
    assert (row.tokens, row.counted) == (6, 2)


def test_a_tool_call_is_shown_as_counted_and_its_answer_is_not() -> None:
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"n": 3}}}
    tools = [{"type": "function", "function": {"name": "lookup", "description": "d", "parameters": {}}}]
    messages = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call]},
        {"role": "tool", "content": "The third pier."},
        {"role": "assistant", "content": "At pier three."},
    ]
    row = row_preview.rendered({"messages": messages, "tools": tools}, trl_tokenizer("qwen2_5"), 4096)
    counted = joined(row, "counted")
    assert counted.startswith('Let me look.\n<tool_call>\n{"name": "lookup", "arguments": {"n": 3}}')
    assert counted.endswith("At pier three.<|im_end|>")
    assert "The third pier." in joined(row, "read")


def test_a_prompt_is_shown_by_the_chat_template_and_counted_by_choice() -> None:
    row = {"prompt": "the bank", "completion": "shall report"}
    plain, counted = (
        row_preview.rendered(row, make_tokenizer(), 100, row_preview.ReadingOfRows(in_chat, loss))
        for in_chat, loss in ((True, "answers"), (True, "with_prompt"))
    )
    assert joined(plain).split() == ["<user>", "the", "bank", "<end>", "<assistant>", "shall", "report", "<end>"]
    assert joined(plain, "counted").split() == ["shall", "report", "<end>"]
    assert joined(counted, "counted").split() == ["the", "bank", "<end>", "<assistant>", "shall", "report", "<end>"]


def test_the_labels_are_the_trainings_own(tmp_path: Path) -> None:
    from training.lm.base_model import sequences_of

    file = write_jsonl(tmp_path / "rows.jsonl", [{"messages": CHAT}])
    tokenizer = make_tokenizer()
    (trained,) = sequences_of(file, "train", tokenizer, 100)
    row = row_preview.rendered({"messages": CHAT}, tokenizer, 100)
    counted = [tokenizer.decode([label]) for label in trained.labels[1:] if label != -100]
    assert joined(row, "counted").split() == counted


def test_lengths_tell_what_is_cut_and_what_is_left_out() -> None:
    tokenizer = make_tokenizer()
    rows = [{"text": "the bank " * count} for count in (1, 2, 10)] + [{"prompt": "the " * 9, "completion": "bank"}]
    lengths = row_preview.lengths_of([row_preview.sequence_of(row, tokenizer) for row in rows], 8)
    assert (lengths.rows, lengths.longest, lengths.cut, lengths.silent) == (4, 21, 2, 1)
    assert lengths.cut_share == 0.5
    assert lengths.cut_tokens == pytest.approx((13 + 3) / (3 + 5 + 21 + 11))
    assert sum(lengths.bins) == 4


@pytest.fixture
def chats(project: Project, alice: User, tmp_path: Path) -> Dataset:
    lines = [{"messages": [{"role": "user", "content": f"the bank {n}"}, CHAT[1]]} for n in range(40)]
    file = write_jsonl(tmp_path / "chats.jsonl", lines)
    return Dataset.create(project=project, name="chats", file=file, filename="chats.jsonl", by=alice.as_actor())


@pytest.fixture
def talking(db_or_fresh: None) -> BaseModel:
    model = BaseModel.objects.create(slug="talking", source="talking")
    save_base_model(model.folder)
    model.inspect()
    return model


def test_page_and_rest_show_it(client: Client, chats: Dataset, talking: BaseModel, bob: User, charlie: User) -> None:
    client.force_login(bob)
    page = client.get(f"/datasets/{chats.pk}/", {"base_model": "talking", "max_length": 16})
    assert b"No row is longer than 16 tokens." in page.content
    assert b"read as OpenAI messages" in b" ".join(page.content.split())
    assert '<span class="completion">' in markup(page)
    assert page.content.count(b"&lt;assistant&gt;") == 8
    preview = client.get(f"/api/v1/datasets/{chats.pk}/preview/?base_model=talking&max_length=16").json()
    assert preview["lengths"]["longest"] == preview["rendered"][0]["tokens"] == 11
    client.force_login(charlie)
    assert client.get(f"/datasets/{chats.pk}/", {"base_model": "talking"}).status_code == 404


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("base_model=none", "base_model"),
        ("base_model=tiny", "base_model"),
        ("base_model=talking&max_length=1", "max_length"),
    ],
)
def test_what_cannot_be_rendered_is_named(
    query: str, field: str, client: Client, chats: Dataset, talking: BaseModel, base_model: BaseModel, bob: User
) -> None:
    """`tiny` has a tokenizer file that is none."""
    client.force_login(bob)
    refused: Any = client.get(f"/api/v1/datasets/{chats.pk}/preview/?{query}")
    assert refused.status_code in (400, 422)
    assert field in refused.content.decode()
    page = client.get(f"/datasets/{chats.pk}/?{query}")
    assert page.status_code == 200
    assert b"errorlist" in page.content


TWO_AT_ONCE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import subprocess
import sys
from pathlib import Path
from training.datasets.row_preview import tokenizer_of
with ThreadPoolExecutor(2) as threads:
    first = threads.submit(tokenizer_of, Path(sys.argv[1]), "1")
    while "transformers" not in sys.modules:
        time.sleep(0.001)
    second = threads.submit(tokenizer_of, Path(sys.argv[1]), "2")
    assert len(first.result()) == len(second.result())
"""


@pytest.mark.slow
def test_two_requests_may_be_the_first_that_read_a_tokenizer(tmp_path: Path) -> None:
    save_base_model(tmp_path / "tiny")
    command = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path / "tiny")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
