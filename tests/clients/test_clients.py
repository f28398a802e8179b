"""The packages that applications reach the router with, against the whole product."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from adapterhub.client import Client, calls
from tests.builders.product import Product
from tests.byte_llama import save_adapter, save_model, tokenizer
from tests.tools import CLIENTS_PYTHON, requires
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, requires("clients")]

HERE = Path(__file__).parent
SCOPES = ("read", "publish", "operate", "infer", "admin")
TEMPLATE = (
    "{% for t in tools or () %}{{ t['function']['name'] }} {% endfor %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ m.get('tool_calls') or '' }}\n{% endfor %}"
)
TASK = """\
task: articles
dataset_path: json
dataset_kwargs:
  data_files: {rows}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@dataclass
class Served:
    """A product that serves the alias compliance: an adapter in `adapter`, on the model in `base`."""

    product: Product
    token: str
    reader: str
    base: Path
    adapter: Path

    def drive(self, script: str) -> Any:
        """Run a script in the environment of the clients, and return the JSON that it prints."""
        command = [str(CLIENTS_PYTHON), str(HERE / f"drive_{script}.py"), self.product.router]
        done = subprocess.run(command, env=self.environ(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        # Some of them greet their users first.
        return json.loads(done.stdout.splitlines()[-1])

    def environ(self) -> dict[str, str]:
        own = {"OPENAI_API_KEY": self.token, "READ_TOKEN": self.reader, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        return {**os.environ, **own, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ""}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-product-", dir="/tmp"))
    base = save_model(home / "models" / "tiny")
    words = tokenizer()
    words.chat_template = TEMPLATE
    words.save_pretrained(base)
    adapter = save_adapter(base, home / "adapter", seed=1, r=8, lora_alpha=16)
    product = Product(home)
    product.environ["ADAPTERHUB_TORCH_THREADS"] = "1"
    supervisor = product.start()
    try:
        yield serve(product, base, adapter)
    finally:
        supervisor.terminate()
        supervisor.wait(60)
        for process in product.processes():
            process.kill()
        shutil.rmtree(home, ignore_errors=True)


def serve(product: Product, base: Path, adapter: Path) -> Served:
    product.manage("create_project", "eu")
    scopes = [part for scope in SCOPES for part in ("--scope", scope)]
    token = product.manage("create_token", "ci", "--project", "eu", *scopes)
    reader = product.manage("create_token", "reader", "--project", "eu", "--scope", "read")
    with Client(product.web, token) as api:
        api.send(calls.post("base-models/", slug="tiny", source="tiny"))
        wait_until(lambda: api.send(calls.get("base-models/tiny/"))["status"] == "ready", 60, "the base model")
        api.send(calls.create_adapter("eu", "dora", "tiny"))
        version = api.send(calls.push("dora", adapter))
        number = version["number"]
        wait_until(lambda: api.send(calls.version("dora", number))["status"] == "ready", 60, "the version")
        api.send(calls.post("clusters/", project="eu", slug="laptop", base_model="tiny"))
        api.send(calls.post("replicas/", cluster="laptop", url=product.engine))
        api.send(calls.create_alias("eu", "compliance", "laptop", version["served_name"], {}))
    headers = {"Authorization": f"Bearer {token}"}

    def answers() -> bool:
        body = {"model": "compliance", "prompt": "a", "max_tokens": 1}
        return httpx.post(f"{product.router}/v1/completions", json=body, headers=headers, timeout=60).is_success

    wait_until(answers, 60, "the version to be served")
    return Served(product, token, reader, base, adapter)


def require_finding(finding: dict[str, Any]) -> None:
    assert finding["kind"] in ("report", "audit")
    assert isinstance(finding["urgent"], bool)


def test_openai(served: Served) -> None:
    got = served.drive("openai")
    assert ("compliance", got["model"]) in {(name, "compliance") for name, _ in got["models"]}
    assert all(created > 1_700_000_000 for _, created in got["models"])
    assert len(got["id"]) == 32
    assert got["whole"][0]
    assert all(got["stream"])
    assert got["counted"] >= 1
    assert len(got["several"]) == 3
    assert [text for text, _ in got["echoed"]] == ["one", "two"]
    assert [[number if number is None else number < 0 for number in row] for _, row in got["echoed"]] == [
        [None, True, True]
    ] * 2
    require_finding(got["parsed"])
    for call in got["called"]:
        require_finding(call)
    assert len(got["called"]) == 1
    assert got["streamed_calls"] >= 1
    errors = got["errors"]
    assert (errors["stranger"]["status"], errors["reader"]["status"]) == (401, 403)
    assert (errors["unknown"]["status"], errors["unknown"]["code"]) == (404, "model_not_found")
    assert (errors["long"]["status"], errors["long"]["code"]) == (400, "context_length_exceeded")
    assert errors["responses"]["code"] == "no_responses"
    assert all(len(error["id"]) == 32 for error in errors.values())


def test_who_leaves_is_in_no_count_and_costs_the_engine_nothing(served: Served) -> None:
    before = closed(served)
    assert served.drive("openai")["left"]
    wait_until(lambda: closed(served) - before == 3, what="the request and its two repetitions to be reported")
    busy = 'vllm:num_requests_running{model_name="tiny"} 0'
    wait_until(lambda: busy in httpx.get(f"{served.product.engine}/metrics").text, what="the engine to be free")


def closed(served: Served) -> float:
    """The answers that their clients did not wait for."""
    token = (served.product.home / "router" / "metrics-token").read_text()
    text = httpx.get(f"{served.product.router}/metrics", headers={"Authorization": f"Bearer {token}"}).text
    lines = [line for line in text.splitlines() if line.startswith("adapterhub_client_closed_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_litellm(served: Served) -> None:
    got = served.drive("litellm")
    assert got["whole"] >= 1
    assert got["text"]
    assert isinstance(got["formed"]["urgent"], bool)
    assert got["unknown"] == 404


def test_langchain(served: Served) -> None:
    got = served.drive("langchain")
    assert got["whole"] >= 1
    assert got["stream"]
    require_finding(got["finding"])
    require_finding(got["called"])
    ((name, arguments),) = got["tool"]
    assert name == "look_up"
    assert isinstance(arguments["urgent"], bool)


def test_llama_index(served: Served) -> None:
    got = served.drive("llama_index")
    assert all(got.values())
    assert set(got) == {"chat", "stream", "plain", "plain_stream"}


def test_instructor(served: Served) -> None:
    got = served.drive("instructor")
    assert set(got) == {"TOOLS", "JSON_SCHEMA"}
    for finding in got.values():
        require_finding(finding)


def test_lm_evals_multiple_choice_is_that_of_transformers(served: Served, tmp_path: Path) -> None:
    rows = [
        {"question": f"Article {number}:", "choices": ["one", "twenty", "three men"], "answer": number % 3}
        for number in range(12)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "articles.yaml").write_text(TASK.format(rows=data))
    settings = {
        "model": "compliance",
        "base_url": f"{served.product.router}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": served.base,
        "num_concurrent": 1,
        "max_retries": 1,
        "max_length": 1024,
    }
    command = [str(CLIENTS_PYTHON), "-m", "lm_eval", "--model", "local-completions", "--tasks", "articles"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
    command += ["--batch_size", "4", "--model_args", ",".join(f"{name}={value}" for name, value in settings.items())]
    done = subprocess.run(command, env=served.environ(), capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("samples_articles_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(served.base), served.adapter)
    # lm-eval puts a blank between question and choice.
    expected = [[scored(model, row["question"], f" {choice}") for choice in row["choices"]] for row in rows]
    assert len(samples) == len(rows)
    for sample in samples:
        own = [float(response[0]) for response in sample["filtered_resps"]]
        assert own == pytest.approx(expected[sample["doc_id"]], abs=1e-3)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    right = [max(range(3), key=row.__getitem__) == number % 3 for number, row in enumerate(expected)]
    accuracy = json.loads(results.read_text())["results"]["articles"]["acc,none"]
    assert accuracy == pytest.approx(sum(right) / len(right), abs=1e-3)


def scored(model: PeftModel, question: str, choice: str) -> float:
    """The log-likelihood of the choice after the question, through transformers and PEFT."""
    context, answer = tokenizer().encode(question), tokenizer().encode(choice)
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([context + answer])).logits[0].log_softmax(dim=-1)
    return sum(float(logprobs[len(context) + place - 1, token]) for place, token in enumerate(answer))
