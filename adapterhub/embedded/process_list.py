"""The start-up steps and processes that AdapterHub runs besides Postgres and Valkey."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.embedded.layout import Layout, database_signer_url, redis_url
from adapterhub.embedded.options import DEFAULT_MODEL, Options, model_folder
from adapterhub.embedded.probes import HttpProbe, LogProbe
from adapterhub.embedded.process import ProcessSpec

PROJECT = Path(__file__).resolve().parents[2]
# Celery logs "celery@host ready." once it takes tasks.
CELERY_READY = LogProbe(" ready.")


@dataclass(frozen=True)
class Step:
    """A command that must succeed before any process starts; `failure` explains a non-zero exit."""

    name: str
    argv: Sequence[str]
    failure: str


@dataclass(frozen=True)
class Plan:
    """The start once Postgres and Valkey answer: the steps in order, then all processes at once.

    The ports are checked before anything starts.
    """

    steps: Sequence[Step] = ()
    processes: Sequence[ProcessSpec] = ()
    ports: Sequence[tuple[str, int]] = field(default=())
    """(the variable that sets it, port): all must be free before anything starts."""


def services_plan() -> Plan:
    """Return the plan of the services alone: it migrates the database and starts no process."""
    return Plan(steps=[_migrate()])


def full_plan(options: Options) -> Plan:
    """Return the plan of the whole product. Raises StartError when the named base model is missing."""
    return Plan(
        steps=[_migrate(), *_model_steps(options)],
        processes=[
            _web(options),
            *_signers(options),
            *_workers(options),
            _router(options),
            *_engines(options),
        ],
        ports=_ports(options),
    )


def child_environment(options: Options) -> dict[str, str]:
    """Return the environment of children: that of this process, with ADAPTERHUB_HOME absolute.

    If there is a signer process, its address is added.
    """
    signer = {"ADAPTERHUB_SIGNER_URL": f"unix://{Layout(options.home).signer_socket}"} if options.has_signer else {}
    return dict(os.environ) | {
        **signer,
        "ADAPTERHUB_HOME": str(options.home),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _python(*arguments: str | Path | int) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def _manage(*arguments: str | Path) -> list[str]:
    return _python("-m", "adapterhub.manage", *arguments)


def _migrate() -> Step:
    return Step("migrate", _manage("migrate", "--noinput"), "The database could not be migrated")


def _model_steps(options: Options) -> list[Step]:
    if not options.engines or model_folder(options.home, options.base_model).is_dir():
        return []
    argv = _python("-m", "adapterhub.demo.input_data", "model", "--home", options.home)
    failure = f"The base model {DEFAULT_MODEL} could not be prepared (or set ADAPTERHUB_BASE_MODEL to a model's folder)"
    return [Step("model", argv, failure)]


def _web(options: Options) -> ProcessSpec:
    argv = _python("-m", "adapterhub.web", "--host", options.host, "--port", options.port)
    return _spec(options, "web", argv, _http(options, options.port, "/healthz"))


def _signers(options: Options) -> list[ProcessSpec]:
    """Return the process that alone may sign, by its own database role."""
    if not options.has_signer:
        return []
    argv = _manage("run_signer", "--socket", Layout(options.home).signer_socket)
    env = child_environment(options)
    env.pop("DATABASE_URL_FILE", None)
    env["DATABASE_URL"] = options.database_signer_url or database_signer_url(options.home)
    probe = LogProbe("Uvicorn running on")
    return [ProcessSpec(name="signer", argv=argv, env=env, probe=probe, cwd=PROJECT)]


def _workers(options: Options) -> list[ProcessSpec]:
    """Return a worker for each queue, so that what one waits for stalls no other; beat runs in the first."""
    schedule = Layout(options.home).run / "beat-schedule"
    return [
        _worker(options, "control", 2, "-B", "-s", schedule),
        _worker(options, "default", 1),
        _worker(options, "download", 1),
        _worker(options, "gpu", 1),
    ]


def _worker(options: Options, queue: str, processes: int, *arguments: str | Path) -> ProcessSpec:
    name = f"{queue}-worker"
    argv = _celery("worker", "-Q", queue, "--concurrency", processes, "-n", f"{name}@%h", *arguments)
    return _spec(options, name, argv, CELERY_READY)


def _celery(*arguments: str | Path | int) -> list[str]:
    return _python("-m", "celery", "-A", "adapterhub", *arguments, "--loglevel", "INFO")


def _router(options: Options) -> ProcessSpec:
    folder = Layout(options.home).router
    valkey = options.redis_url or redis_url(options.home)
    argv = _python("-m", "serving_client.router", "--host", options.host, "--port", options.router_port)
    argv += ["--redis-url", valkey, "--snapshot", f"{folder / 'table.json'}", "--spool", f"{folder / 'outcomes.spool'}"]
    argv += ["--hosts", ",".join([*options.hosts, options.host])]
    argv += ["--engine-hosts", ",".join(options.engine_hosts), "--table-max-age-s", str(options.table_max_age_s)]
    argv += ["--connections", str(options.connections), "--proxies", ",".join(options.proxies)]
    argv += ["--connections-per-address", str(options.connections_per_address)]
    argv += ["--secret-file", options.router_secret_file or str(options.home / "router-secret")]
    argv += ["--metrics-token-file", str(folder / "metrics-token"), "--log-format", options.log_format]
    return _spec(options, "router", argv, _http(options, options.router_port, "/healthz"))


def _engines(options: Options) -> list[ProcessSpec]:
    return [_engine(options, number) for number in range(options.engines)]


def _engine(options: Options, number: int) -> ProcessSpec:
    model, port = model_folder(options.home, options.base_model), options.engine_port + number
    argv = _python("-m", "serving_client.engine", "--model", model, "--served-model-name", model.name)
    argv += ["--host", options.host, "--port", str(port), "--device", options.engine_device]
    argv += ["--log-format", options.log_format]
    argv += ["--threads", str(options.threads)] if options.threads else []
    return _spec(options, f"engine-{number}", argv, _http(options, port, "/health"))


def _spec(options: Options, name: str, argv: Sequence[str], probe: HttpProbe | LogProbe) -> ProcessSpec:
    env = child_environment(options)
    if isinstance(probe, LogProbe):
        # Celery's SIGTERM waits for running tasks for ever; its SIGQUIT hands them back to the queue.
        env["REMAP_SIGTERM"] = "SIGQUIT"
    return ProcessSpec(name=name, argv=argv, env=env, probe=probe, cwd=PROJECT)


def _http(options: Options, port: int, path: str) -> HttpProbe:
    return HttpProbe(reachable_host(options.host), port, path)


def reachable_host(host: str) -> str:
    """Return the address at which to reach a process that listens on `host`: loopback for a wildcard, else `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - asked for by the operator


def _ports(options: Options) -> list[tuple[str, int]]:
    engines = [("ADAPTERHUB_ENGINE_PORT", options.engine_port + number) for number in range(options.engines)]
    return [("ADAPTERHUB_PORT", options.port), ("ADAPTERHUB_ROUTER_PORT", options.router_port), *engines]
