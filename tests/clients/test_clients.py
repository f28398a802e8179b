"""The packages that applications reach the router with, against the whole product."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import textwrap
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
from tests.builders.product import ROOT, Product
from tests.byte_llama import save_adapter, save_model, tokenizer
from tests.tiny_model import write_jsonl
from tests.tools import CLIENTS_PYTHON, requires
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, requires("clients")]

HERE = Path(__file__).parent
SCOPES = ("read", "publish", "train", "operate", "infer", "admin")
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


ROWS = [
    {"question": f"Article {number}:", "choices": ["one", "twenty", "three men"], "answer": number % 3}
    for number in range(12)
]


def offer_tasks(folder: Path) -> Path:
    """Write the task `articles` with its rows."""
    folder.mkdir()
    rows = write_jsonl(folder / "rows.jsonl", ROWS)
    (folder / "articles.yaml").write_text(TASK.format(rows=rows))
    return folder


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
    product.environ["ADAPTERHUB_LM_EVAL_TASKS"] = str(offer_tasks(home / "tasks"))
    product.environ["ADAPTERHUB_LM_EVAL_PYTHON"] = str(CLIENTS_PYTHON)
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


REFUSED = {
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "reasoning_effort": "reasoning_effort",
    "verbosity": "verbosity",
    "modalities": "modalities",
    "prediction": "prediction",
    "web_search_options": "web_search_options",
    "functions": "functions",
    "function_call": "function_call",
    "guided_json": "guided_json",
    "stream_options alone": "stream_options",
    "image_url": "image_url",
    "tool_choice unknown": "tool_choice",
    "top_logprobs alone": "top_logprobs",
    "n of 9": "n must be",
}


def test_each_parameter_of_openais_sdk_is_honoured_or_refused_by_name(served: Served) -> None:
    got = served.drive("parameters")
    refused = {name: given for name, given in got.items() if isinstance(given, dict) and "refused" in given}
    assert {name: given["refused"] for name, given in refused.items()} == dict.fromkeys(REFUSED, 400)
    assert [name for name, words in REFUSED.items() if words not in refused[name]["message"]] == []
    assert (got["stop list"]["texts"], got["stop list"]["ends"]) == (['{"'], ["stop"])
    assert len(got["n"]["texts"]) == 3
    assert set(got["logprobs"]["logprobs"]) == {3}
    assert isinstance(json.loads(got["response_format json_schema"]["texts"][0])["urgent"], bool)
    assert got["response_format json_object"]["texts"][0].startswith("{")
    for name in ("tool_choice required", "tool_choice named", "parallel_tool_calls"):
        assert {(called, *arguments) for called, arguments in got[name]["calls"]} == {("look_up", "urgent")}, name
    assert len(got["parallel_tool_calls"]["calls"]) == 1
    assert got["tool_choice none"]["calls"] == []
    assert (got["max_completion_tokens"]["tokens"], got["max_tokens"]["tokens"]) == (4, 5)
    assert len(set(got["logit_bias"]["texts"][0])) == 1
    assert (got["stream_options"]["choices"], got["stream_options"]["tokens"] > 0) == (0, True)
    first, same, other = got["seed"]
    assert first == same != other
    assert got["sent back"] > 0
    pieces = got["pieces"]
    assert (pieces["ids"], pieces["first"], pieces["end"]) == (1, "", "tool_calls")
    assert pieces["count"] > 3
    assert isinstance(pieces["arguments"]["urgent"], bool)


@pytest.mark.parametrize("page", ["README.md", "docs/clients.md"])
def test_the_sdk_call_of_the_documents_runs_as_it_stands(served: Served, page: str) -> None:
    text = (ROOT / page).read_text()
    (match,) = re.finditer(r"^( *)from openai import OpenAI\n(?:\1.*\n|\n)*", text, re.MULTILINE)
    program = textwrap.dedent(match[0].partition("```")[0])
    assert program.count("http://127.0.0.1:8080/v1") == 1
    program = program.replace("http://127.0.0.1:8080", served.product.router)
    begin = "import os\ntoken = TOKEN = os.environ['OPENAI_API_KEY']\n"
    command = [str(CLIENTS_PYTHON), "-c", f"{begin}{program}\nprint(answer.model_dump_json())\n"]
    done = subprocess.run(command, env=served.environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert answer["usage"]["completion_tokens"] >= 1
    assert len(answer["choices"]) == 1


def test_who_leaves_is_in_no_count_and_costs_the_engine_nothing(served: Served) -> None:
    before = closed(served)
    assert served.drive("openai")["left"]
    # On a busy machine the client may give up one of its three tries before the router has read it.
    wait_until(lambda: closed(served) > before, what="the request or one of its two repetitions to be reported")
    busy = 'vllm:num_requests_running{model_name="tiny"} 0'
    wait_until(lambda: busy in httpx.get(f"{served.product.engine}/metrics").text, what="the engine to be free")
    assert closed(served) - before <= 3


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
    assert (len(got["several"]), min(got["several"]) >= 1, got["counted"]) == (2, True, 4)
    assert got["same"][0] == got["same"][1]
    assert len(got["called"]) == 1
    assert all(isinstance(call["urgent"], bool) for call in (*got["called"], got["streamed"]))
    assert got["refused"] == {"presence_penalty": True, "reasoning_effort": True}


def test_langchain(served: Served) -> None:
    got = served.drive("langchain")
    assert got["whole"] >= 1
    assert got["stream"]
    require_finding(got["finding"])
    require_finding(got["called"])
    ((name, arguments),) = got["tool"]
    assert name == "look_up"
    assert isinstance(arguments["urgent"], bool)
    assert got["several"][0] == got["several"][1]
    assert set(got["likely"]) == {2}
    assert (got["counted"] >= 1, got["pieces"] > 3) == (True, True)
    assert got["refused"] == {name: name for name in ("reasoning_effort", "frequency_penalty", "verbosity")}


def test_llama_index(served: Served) -> None:
    got = served.drive("llama_index")
    assert all(got.values())
    assert set(got) == {"chat", "stream", "plain", "plain_stream", "same", "parts", "refused"}


def test_instructor(served: Served) -> None:
    got = served.drive("instructor")
    assert set(got) == {"TOOLS", "JSON_SCHEMA"}
    for finding in got.values():
        require_finding(finding)


def lm_eval(served: Served, out: Path, model: str, *settings: str, starter: str = "") -> list[dict[str, Any]]:
    """Run the task with lm-eval and return its samples in their order, the likelihoods of each in `own`."""
    start = ["-c", starter] if starter else ["-m", "lm_eval"]
    command = [str(CLIENTS_PYTHON), *start, "run", "--model", model, "--tasks", "articles", "--batch_size", "4"]
    command += ["--include_path", str(served.product.home / "tasks"), "--output_path", str(out), "--log_samples"]
    command += ["--model_args", *settings]
    done = subprocess.run(command, env=served.environ(), capture_output=True, text=True, check=False, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = out.rglob("samples_articles_*.jsonl")
    samples = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda one: one["doc_id"])
    return [{**one, "own": [float(response[0]) for response in one["filtered_resps"]]} for one in samples]


@pytest.fixture(scope="module")
def expected(served: Served) -> list[list[float]]:
    """The log-likelihoods of the choices of each row, through transformers and PEFT."""
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(served.base), served.adapter)
    # lm-eval puts a blank between question and choice.
    return [[scored(model, row["question"], f" {choice}") for choice in row["choices"]] for row in ROWS]


def accuracy(likelihoods: list[list[float]]) -> float:
    right = [max(range(3), key=row.__getitem__) == number % 3 for number, row in enumerate(likelihoods)]
    return sum(right) / len(right)


def test_lm_evals_multiple_choice_is_that_of_transformers(
    served: Served, expected: list[list[float]], tmp_path: Path
) -> None:
    settings = {
        "model": "compliance",
        "base_url": f"{served.product.router}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": served.base,
        "num_concurrent": 1,
        "max_retries": 1,
        "max_length": 1024,
    }
    given = [f"{name}={value}" for name, value in settings.items()]
    samples = lm_eval(served, tmp_path / "out", "local-completions", *given)
    assert [one["own"] for one in samples] == [pytest.approx(row, abs=1e-3) for row in expected]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    measured = json.loads(results.read_text())["results"]["articles"]["acc,none"]
    assert measured == pytest.approx(accuracy(expected), abs=1e-3)


def test_lm_evals_own_hf_model_finds_the_same(served: Served, expected: list[list[float]], tmp_path: Path) -> None:
    """Its environment has no torch; it borrows ours, behind its own packages."""
    borrowed = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); "
    starter = f"{borrowed}from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    given = [f"pretrained={served.base}", f"peft={served.adapter}", "dtype=float32"]
    samples = lm_eval(served, tmp_path / "hf", "hf", *given, starter=starter)
    assert [one["own"] for one in samples] == [pytest.approx(row, abs=1e-3) for row in expected]


def test_an_evaluation_asks_lm_eval_and_its_score_is_a_gate(served: Served, expected: list[list[float]]) -> None:
    with Client(served.product.web, served.token) as api:
        alias = api.send(calls.alias("compliance"))
        job = api.wait(calls.evaluate("eu", alias["version"], task="articles"))
        assert job["status"] == "succeeded", job["message"]
        assert job["metrics"]["scores"]["acc"] == pytest.approx(accuracy(expected), abs=1e-3)
        task = job["metrics"]["task"]
        assert (task["name"], task["samples"], task["chat"]) == ("articles", 12, False)
        assert len(task["hash"]) == 64
        assert task["lm_eval"]
        tokens = api.send(calls.get("tokens/"))["results"]
        assert all(one["revoked_at"] for one in tokens if one["name"].startswith("evaluation "))


def scored(model: PeftModel, question: str, choice: str) -> float:
    """The log-likelihood of the choice after the question, through transformers and PEFT."""
    context, answer = tokenizer().encode(question), tokenizer().encode(choice)
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([context + answer])).logits[0].log_softmax(dim=-1)
    return sum(float(logprobs[len(context) + place - 1, token]) for place, token in enumerate(answer))
