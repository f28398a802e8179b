"""An evaluation task of EleutherAI's lm-eval, run against a served version.

Command: `python -m training.recipes.lm_eval_task FILE`. The harness runs under a Python interpreter of its own and
sends requests to the router, as an application does; this program imports nothing of it.
OUTPUT/result.json: {"task": {"name", "hash", "samples", "chat", "lm_eval"}, "scores": {"acc": 0.5, ...}}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from math import isfinite
from typing import Any

import httpx

from serving_client.parent_death import die_with_parent
from training.lm.error_reporting import BadInput
from training.lm.events import Events
from training.recipes import entrypoint, run_file
from training.recipes.run_file import Positive, RunFile, TextPath

INSTALL = "pip install 'lm-eval[api]' transformers"
ASK_AGAIN_S = 2.0


class Task(RunFile):
    """The job file of an lm-eval task.

    `python` is the interpreter that has lm-eval, `tasks` the folder of task files, `task` the task's name, `model` the
    served name, `router` the router's URL and `token` the bearer token for it. `max_length` is in tokens; `chat`
    applies the chat template; `served_within_s` is the number of seconds that loading a version may take.
    """

    python: str
    tasks: TextPath
    task: str
    model: str
    router: str
    token: str
    max_length: Positive
    chat: bool = False
    served_within_s: Positive = 300


def main(arguments: list[str]) -> int:
    """Run the task that the job file describes; return the exit status: 0, 2 for bad input, 1 for any other error."""
    return entrypoint.measure(arguments, Task, run)


def run(task: Task, events: Events) -> None:
    """Wait until the router serves the version, run the task with lm-eval, and write OUTPUT/result.json.

    The scores are logged as an event. Raises BadInput if lm-eval or the folder of tasks is missing, the version is not
    served, lm-eval fails, or it writes no number.
    """
    require_harness(task)
    if not task.tasks.is_dir():
        raise BadInput(f"tasks: {task.tasks} is no folder on this worker: mount the folder of tasks here, too.")
    wait_until_served(task)
    task.output.mkdir(parents=True, exist_ok=True)
    status = subprocess.run(  # noqa: S603 - argv list, no shell
        command(task), env=environment(task), check=False, preexec_fn=die_with_parent(signal.SIGKILL)
    ).returncode
    if status:
        raise BadInput(f"task: lm-eval ended with status {status} on {task.task}; the job's log says why.")
    result = result_of(task)
    run_file.write_atomically(task.output / "result.json", result)
    events.write("log", message=f"{task.task}: {result['scores']}.")


def require_harness(task: Task) -> None:
    """Raise BadInput if the task's Python interpreter cannot be started or has no lm-eval."""
    try:
        probe = subprocess.run(  # noqa: S603 - argv list, no shell
            [task.python, "-c", "import lm_eval, tenacity"], env=environment(task), capture_output=True, check=False
        )
    except OSError as error:
        raise BadInput(f"python: {task.python} cannot be started: {error.strerror}.") from None
    if probe.returncode:
        raise BadInput(f"python: {task.python} has no lm-eval: {INSTALL} there.")


def environment(task: Task) -> dict[str, str]:
    """Return the environment variables of the harness, with the router's token and without the worker's secrets.

    They also keep the harness from asking a hub.
    """
    passed_on = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**passed_on, **offline, "HF_HOME": str(task.output / "cache"), "OPENAI_API_KEY": task.token}


def wait_until_served(task: Task) -> None:
    """Request one token from the router repeatedly until the version answers.

    Raises BadInput with the router's error at once if it refuses the request (400 or 403), else after
    `served_within_s`.
    """
    deadline = time.monotonic() + task.served_within_s
    body = {"model": task.model, "prompt": "a", "max_tokens": 1, "temperature": 0}
    headers = {"Authorization": f"Bearer {task.token}"}
    while True:
        try:
            answer = httpx.post(f"{task.router}/v1/completions", json=body, headers=headers, timeout=120)
        except httpx.HTTPError as error:
            problem, is_final = f"the router does not respond ({type(error).__name__})", False
        else:
            if answer.is_success:
                return
            # A token is known to routers within moments; a version within the time of a load.
            problem, is_final = words_of(answer), answer.status_code in (400, 403)
        if is_final or time.monotonic() > deadline:
            raise BadInput(f"version: {task.model} does not answer at {task.router}: {problem}.")
        time.sleep(ASK_AGAIN_S)


def words_of(answer: httpx.Response) -> str:
    """Return the status and message of the router's error response; the status alone if it has no message."""
    try:
        return f"{answer.status_code}, {answer.json()['error']['message']}".rstrip(".")
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


def command(task: Task) -> list[str]:
    """Return the command line that runs the task with lm-eval."""
    model = {
        "model": task.model,
        "base_url": f"{task.router}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": str(task.base_model),
        "max_length": task.max_length,
        "num_concurrent": 4,
        "max_retries": 8,
    }
    line = [task.python, "-m", "lm_eval", "run", "--model", "local-completions", "--tasks", task.task]
    line += ["--include_path", str(task.tasks), "--output_path", str(task.output / "lm_eval"), "--log_samples"]
    line += ["--batch_size", "4", "--model_args", *(f"{name}={value}" for name, value in model.items())]
    return [*line, "--apply_chat_template"] if task.chat else line


def result_of(task: Task) -> dict[str, Any]:
    """Return {task, scores}, the content of result.json, from the newest results file that the harness wrote.

    Raises BadInput if there is no file, or no finite number for the task in it.
    """
    files = sorted((task.output / "lm_eval").rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    report = json.loads(files[-1].read_bytes()) if files else {}
    scores = scores_in(report.get("results", {}).get(task.task, {}))
    if not scores:
        raise BadInput(f"task: lm-eval wrote no number for {task.task}: name a task with a metric, no group without.")
    facts = {
        "name": task.task,
        "hash": report.get("task_hashes", {}).get(task.task, ""),
        "samples": report.get("n-samples", {}).get(task.task, {}).get("effective", 0),
        "chat": task.chat,
        "lm_eval": report.get("lm_eval_version", ""),
    }
    return {"task": facts, "scores": scores}


def scores_in(row: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers in a row of lm-eval's results, by metric.

    The suffix of the filter "none" is removed (`acc,none` becomes `acc`); other filters stay in the name.
    """
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and "," in name}
    return {name.removesuffix(",none"): float(value) for name, value in numbers.items() if isfinite(value)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
