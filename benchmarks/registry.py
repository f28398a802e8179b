"""The registry over HTTP against an MLflow tracking server on the same Postgres: 16 clients, 2 workers each side.

    python benchmarks/registry.py --mlflow /path/to/venv/bin/mlflow --out benchmarks/results/registry.json

`--versions 10000` leaves out the measurement at 100,000.

MLflow has a virtual environment of its own (with psycopg2). Its "create version" records a URI; ours takes the files,
checks them, stores them under their digest and writes the audit event. Both sides are full of versions before the
reads: rows are multiplied in SQL from one that was made over HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.registry_sides import MLflow, Ours, Side, large_adapter
from benchmarks.report import Row, arguments, publish

CLIENTS = 16


def rate(work: Callable[[int, int], None], count: int) -> float:
    """Calls a second over all clients; each makes `count` calls, after one that is not counted."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda client: work(client, -1), range(CLIENTS)))
        began = time.perf_counter()
        list(pool.map(lambda client: [work(client, number) for number in range(count)], range(CLIENTS)))
    return CLIENTS * count / (time.perf_counter() - began)


def p95_ms(work: Callable[[int, int], None], count: int) -> float:
    """The slow end of `count` calls of one client, in milliseconds."""
    times = []
    for number in range(count):
        began = time.perf_counter()
        work(0, number)
        times.append(1000 * (time.perf_counter() - began))
    return sorted(times)[int(0.95 * (count - 1))]


def both(label: str, ours: float, peer: float, goal: float | None, *, less: bool = False) -> Row:
    """With `less`, the ratio says how many times smaller ours is."""
    return Row(label, ours, peer, peer / ours if less else ours / peer, goal)


def measure(ours: Side, peer: Side, sizes: list[int], short: bool, folder: Path) -> list[Row]:
    count = 3 if short else 20
    rows = [
        both(f"{action}/s, 16 clients", *(rate(getattr(side, verb), count) for side in (ours, peer)), 2)
        for action, verb in (("create model", "create_model"), ("create version", "create_version"))
    ]
    for versions in sizes:
        for side in (ours, peer):
            side.fill(versions)
        rows.append(both(f"move alias/s, {versions:,} versions", *pair(ours, peer, "move_alias", count), 2))
        rows.append(both(f"get by alias/s, {versions:,} versions", *pair(ours, peer, "get_by_alias", count), 4))
        rows.append(both(f"search/s, {versions:,} versions", *pair(ours, peer, "search", count), 4))
        slow = [p95_ms(side.search, 40) for side in (ours, peer)]
        rows.append(both(f"search p95 ms, one client, {versions:,} versions", *slow, None, less=True))
        rows.append(Row(f"search p95 ms, {versions:,} versions; goal 50", slow[0], 50, 50 / slow[0], 1))
    return rows + artifacts(ours, peer, 1 if short else 5, folder) + memory(ours, peer)


def pair(ours: Side, peer: Side, verb: str, count: int) -> tuple[float, float]:
    return rate(getattr(ours, verb), count), rate(getattr(peer, verb), count)


def artifacts(ours: Side, peer: Side, count: int, folder: Path) -> list[Row]:
    """One client at a time; MB are those of the weights."""
    files = [large_adapter(folder / f"large-{number}", number) for number in range(count + 1)]
    size = (files[0] / "adapter_model.safetensors").stat().st_size / 1e6
    plain = count * size / timed(lambda: [copied(file, folder / "copy") for file in files[1:]])
    rows = []
    for action, verb in (("upload", "upload"), ("download", "download")):
        for side in (ours, peer):
            side.settle()
        speeds = [throughput(getattr(side, verb), files, size) for side in (ours, peer)]
        rows.append(both(f"{action} of {size:.0f} MB, MB/s", *speeds, None))
        rows.append(Row(f"{action} MB/s; copy and sha256", speeds[0], plain, speeds[0] / plain, 0.8))
    return rows


def throughput(work: Callable[[Path], None], files: list[Path], size: float) -> float:
    work(files[0])
    return (len(files) - 1) * size / timed(lambda: [work(file) for file in files[1:]])


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    with (target / "adapter_model.safetensors").open("rb") as stream:
        hashlib.file_digest(stream, "sha256").hexdigest()
    shutil.rmtree(target)


def memory(ours: Side, peer: Side) -> list[Row]:
    return [both("memory of the servers, MB", ours.memory_mb(), peer.memory_mb(), 2, less=True)]


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """Postgres, Valkey and our settings in a folder that is gone afterwards."""
    from adapterhub.embedded.postgres import EmbeddedPostgres
    from adapterhub.embedded.valkey import EmbeddedValkey

    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "adapterhub.settings",
            "ADAPTERHUB_HOME": name,
            "ADAPTERHUB_SECRET_KEY": secrets.token_urlsafe(64),
        }
        with EmbeddedPostgres(folder), EmbeddedValkey(folder):
            import django
            from django.core.management import call_command

            django.setup()
            call_command("migrate", verbosity=0)
            yield folder


def main() -> None:
    options = arguments(__doc__ or "", "mlflow", "versions")
    binary: Any = options.mlflow or shutil.which("mlflow")
    if not binary:
        sys.stdout.write("no MLflow: pip install mlflow==3.17.2 psycopg2-binary into a venv, and name --mlflow\n")
        return
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    sys.stdout.write(version.stdout)
    with home() as folder, Ours(folder) as ours, MLflow(folder, binary) as peer:
        sizes = [int(options.versions)] if options.versions else [300] if options.short else [10_000, 100_000]
        rows = measure(ours, peer, sizes, options.short, folder)
    publish("registry", rows, options.out)


if __name__ == "__main__":
    main()
