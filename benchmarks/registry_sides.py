"""The two sides of benchmarks/registry.py: the same calls on AdapterHub and on an MLflow tracking server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from safetensors.numpy import save

BOUNDARY = "adapterhub-benchmark"
SHAPES = {
    "q_proj": (1024, 1024),
    "k_proj": (1024, 1024),
    "v_proj": (1024, 1024),
    "o_proj": (1024, 1024),
    "gate_proj": (2816, 1024),
    "up_proj": (2816, 1024),
    "down_proj": (1024, 2816),
}
LAYERS, LARGE_RANK = 24, 26
SEARCHED = 10
IDLE_S = 2


class Side:
    """A server in a process group of its own, and one kept connection a thread."""

    command: list[str]
    ready: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.local = threading.local()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self) -> Self:
        with (self.folder / f"{type(self).__name__}.log").open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self.command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **self.environment()}
            )
        self.wait()
        self.prepare()
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def environment(self) -> dict[str, str]:
        return {}

    def prepare(self) -> None:
        return None

    def wait(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                self.call("GET", self.ready)
            except (OSError, http.client.HTTPException):
                self.local = threading.local()
                time.sleep(0.3)
            else:
                return
        raise SystemExit((self.folder / f"{type(self).__name__}.log").read_text()[-3000:])

    def call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        connection = self.connection()
        connection.request(method, path, body, {"Content-Type": kind, **self.headers()})
        answer = connection.getresponse()
        content: bytes = answer.read()
        self.local.used = time.monotonic()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {content[:800]!r}")
        return content

    def connection(self) -> http.client.HTTPConnection:
        """This thread's own; a new one after a rest, because a server closes what idles (uvicorn after 5 s)."""
        if time.monotonic() - getattr(self.local, "used", float("-inf")) > IDLE_S:
            self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection: http.client.HTTPConnection = self.local.connection
        return connection

    def headers(self) -> dict[str, str]:
        return {}

    def send(self, method: str, path: str, fields: dict[str, Any]) -> Any:
        return json.loads(self.call(method, path, json.dumps(fields).encode()) or b"{}")

    def memory_mb(self) -> float:
        """Proportional memory of the whole process group: what is shared counts once."""
        tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return sum(process.memory_full_info().pss for process in tree) / 2**20

    def fill(self, versions: int) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """What happens between the uploads and the downloads, outside the clock."""


def adapter(seed: int, rank: int, layers: int = 1) -> tuple[bytes, bytes]:
    """Weights and configuration of a LoRA on the benchmark's base model."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for kind, (out, width) in list(SHAPES.items())[: 7 if layers > 1 else 1]:
            part = "mlp" if kind in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            name = f"base_model.model.model.layers.{layer}.{part}.{kind}"
            tensors[f"{name}.lora_A.weight"] = random.random((rank, width), np.float32)
            tensors[f"{name}.lora_B.weight"] = random.random((out, rank), np.float32)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(SHAPES)}
    return save(tensors), json.dumps(config).encode()


def large_adapter(folder: Path, seed: int) -> Path:
    weights, config = adapter(seed, LARGE_RANK, LAYERS)
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_bytes(config)
    return folder


def multipart(weights: bytes, config: bytes) -> bytes:
    parts: list[bytes] = []
    for name, content in (("adapter_model", weights), ("adapter_config", config)):
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'
        parts += [head.encode(), content, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


class Ours(Side):
    """AdapterHub's web process with two workers."""

    ready = "/healthz"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.command = [
            sys.executable,
            "-m",
            "uvicorn",
            "adapterhub.asgi:application",
            "--workers",
            "2",
            "--port",
            str(self.port),
            "--no-proxy-headers",
            "--log-level",
            "warning",
        ]
        self.token = ""

    def environment(self) -> dict[str, str]:
        # One token sends all that the server can take, which its rate limit is there to prevent.
        return {"ADAPTERHUB_API_REQUESTS_PER_S": "0"}

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def prepare(self) -> None:
        from adapterhub.accounts.models import ApiToken, Project
        from registry.models import BaseModel, BaseModelStatus, Cluster

        config = {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_attention_heads": 16,
            "num_hidden_layers": LAYERS,
        }
        base = BaseModel.objects.create(
            slug="base", source="base", digest="0" * 64, config=config, status=BaseModelStatus.READY
        )
        project = Project.objects.create(slug="bench", name="bench")
        Cluster.objects.create(project=project, slug="fleet", base_model=base, max_lora_rank=64)
        scopes = ["read", "publish", "operate"]
        self.token = ApiToken.issue(name="bench", project=project, scopes=scopes)[1]
        self.make_model("filled")
        for client in range(16):
            self.make_model(f"line-{client}")
        for client in range(16):
            self.serve(client)

    def make_model(self, slug: str) -> None:
        self.send("POST", "/api/v1/adapters/", {"project": "bench", "slug": slug, "base_model": "base"})

    def serve(self, client: int) -> None:
        """Two checked versions and an alias that serves the first."""
        from registry.models import AdapterVersion
        from registry.uploads.verification import check

        names = []
        for number in (1, 2):
            answer = self.version(f"line-{client}", 1000 * client + number)
            check(AdapterVersion.objects.get(served_name=answer["served_name"]))
            names.append(answer["served_name"])
        self.send(
            "POST",
            "/api/v1/aliases/",
            {"project": "bench", "name": f"alias-{client}", "cluster": "fleet", "version": names[0]},
        )
        self.served = {**getattr(self, "served", {}), client: names}

    def version(self, slug: str, seed: int) -> Any:
        body = multipart(*adapter(seed, 1))
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        return json.loads(self.call("POST", f"/api/v1/adapters/{slug}/versions/", body, kind))

    def create_model(self, client: int, number: int) -> None:
        self.make_model(f"model-{client}-{number + 1}")

    def create_version(self, client: int, number: int) -> None:
        self.version(f"line-{client}", 10**6 + 10**4 * client + number + 1)

    def move_alias(self, client: int, number: int) -> None:
        before, after = self.served[client]
        self.send(
            "POST",
            f"/api/v1/aliases/alias-{client}/move/",
            {"version": after, "expected_version": before, "reason": "bench"},
        )
        self.served[client] = [after, before]

    def get_by_alias(self, client: int, number: int) -> None:
        self.call("GET", f"/api/v1/aliases/alias-{client}/")

    def search(self, client: int, number: int) -> None:
        self.call("GET", f"/api/v1/adapters/filled/versions/?page_size={SEARCHED}")

    def fill(self, versions: int) -> None:
        """Copies of one row, each with a number, digest and name of its own."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO registry_adapterversion
                SELECT (jsonb_populate_record(v, jsonb_build_object(
                    'id', nextval('registry_adapterversion_id_seq'), 'number', n, 'adapter_id', a.id,
                    'digest', encode(sha256(n::text::bytea), 'hex'), 'served_name', 'filled.v' || n))).*
                FROM (SELECT min(id) AS least FROM registry_adapterversion) one
                     JOIN registry_adapterversion v ON v.id = one.least,
                     (SELECT id FROM registry_adapter WHERE slug = 'filled') a,
                     generate_series((SELECT count(*) FROM registry_adapterversion w
                                      JOIN registry_adapter x ON x.id = w.adapter_id WHERE x.slug = 'filled') + 1, %s) n
                """,
                [versions],
            )
            cursor.execute("ANALYZE registry_adapterversion")

    def upload(self, folder: Path) -> None:
        body = multipart(
            *((folder / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json"))
        )
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        answer = json.loads(self.call("POST", "/api/v1/adapters/line-0/versions/", body, kind))
        self.uploaded = {**getattr(self, "uploaded", {}), folder: answer["number"]}

    def settle(self) -> None:
        from registry.models import AdapterVersion
        from registry.uploads.verification import check

        numbers = getattr(self, "uploaded", {}).values()
        for version in AdapterVersion.objects.filter(adapter__slug="line-0", number__in=numbers, signature=""):
            check(version)

    def download(self, folder: Path) -> None:
        self.call("GET", f"/api/v1/adapters/line-0/versions/{self.uploaded[folder]}/download/")


class MLflow(Side):
    """An MLflow tracking server with two workers, its own database on the same Postgres, artifacts through it."""

    ready = "/health"
    api = "/api/2.0/mlflow"

    def __init__(self, folder: Path, binary: str) -> None:
        super().__init__(folder)
        from django.db import connections

        owner = connections["owner"].settings_dict
        with connections.create_connection("owner").cursor() as cursor:
            cursor.execute("CREATE DATABASE mlflow")
        host = urllib.parse.quote(str(owner["HOST"]), safe="")
        self.url = f"postgresql+psycopg2://{owner['USER']}:{owner['PASSWORD'] or 'x'}@/mlflow?host={host}"
        self.command = [
            binary,
            "server",
            "--backend-store-uri",
            self.url,
            "--serve-artifacts",
            "--workers",
            "2",
            "--artifacts-destination",
            str(folder / "mlflow"),
            "--port",
            str(self.port),
        ]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def prepare(self) -> None:
        for name in ("filled", *(f"line-{client}" for client in range(16))):
            self.make_model(name)
        self.version("filled")
        for client in range(16):
            for _ in (1, 2):
                self.version(f"line-{client}")

    def make_model(self, name: str) -> None:
        self.send("POST", f"{self.api}/registered-models/create", {"name": name})

    def version(self, name: str) -> None:
        self.send("POST", f"{self.api}/model-versions/create", {"name": name, "source": "s3://bench/x"})

    def create_model(self, client: int, number: int) -> None:
        self.make_model(f"model-{client}-{number + 1}")

    def create_version(self, client: int, number: int) -> None:
        self.version(f"line-{client}")

    def move_alias(self, client: int, number: int) -> None:
        self.send(
            "POST",
            f"{self.api}/registered-models/alias",
            {"name": f"line-{client}", "alias": "live", "version": str(1 + number % 2)},
        )

    def get_by_alias(self, client: int, number: int) -> None:
        self.call("GET", f"{self.api}/registered-models/alias?name=line-{client}&alias=live")

    def search(self, client: int, number: int) -> None:
        query = urllib.parse.urlencode({"filter": "name='filled'", "max_results": SEARCHED})
        self.call("GET", f"{self.api}/model-versions/search?{query}")

    def fill(self, versions: int) -> None:
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg2", ""), autocommit=True) as connection:
            connection.execute(
                """
                INSERT INTO model_versions
                SELECT (jsonb_populate_record(v, jsonb_build_object('version', n))).*
                FROM model_versions v,
                     generate_series((SELECT max(version) FROM model_versions WHERE name = 'filled') + 1, %s::int) n
                WHERE v.name = 'filled' AND v.version = 1
                """,
                [versions],
            )
            connection.execute("ANALYZE model_versions")

    def upload(self, folder: Path) -> None:
        for file in folder.iterdir():
            path = f"/api/2.0/mlflow-artifacts/artifacts/{folder.name}/{file.name}"
            self.call("PUT", path, file.read_bytes(), "application/octet-stream")

    def download(self, folder: Path) -> None:
        for file in folder.iterdir():
            self.call("GET", f"/api/2.0/mlflow-artifacts/artifacts/{folder.name}/{file.name}")
