"""The lock files: every package that CI and the images install, with its version and its hashes.

`python .ci/lock.py` writes them and keeps the versions that they name, `--upgrade` takes the newest ones, `--check`
says which are stale. uv resolves, since one file of it serves every Python and processor; pip installs.

torch and what only its build for CUDA brings are a file of their own: without a GPU torch comes from another index,
whose hashes are others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The extras of each file. The first has them all: its versions hold for the others.
EXTRAS = {"dev": ("dev",), "app": ("server", "train", "cli"), "router": ("router",), "sbom": ("sbom",)}
CUDA = "cuda"
ONLY_CUDA = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)[=\[]")
HEADER = """\
# Written by `make lock`, not by hand. pip install --require-hashes --no-deps -r {name}.lock
# sha256 of what pyproject.toml asks for and of the lines below: {digest}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the lock files in requirements/, or check them.")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when one is stale")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    arguments = parser.parse_args()
    if arguments.check:
        return check(ROOT)
    write(ROOT, upgrade=arguments.upgrade)
    return 0


def check(root: Path) -> int:
    """Exit code 1 and a line for each lock file that is not what pyproject.toml asks for."""
    stale = [path for path in (lock(root, name) for name in (*EXTRAS, CUDA)) if not is_fresh(root, path)]
    for path in stale:
        sys.stderr.write(f"{path.relative_to(root)} does not belong to pyproject.toml: run `make lock`.\n")
    return int(bool(stale))


def is_fresh(root: Path, path: Path) -> bool:
    text = path.read_text() if path.exists() else ""
    return text == sealed(root, path.stem, "".join(blocks(text)))


def write(root: Path, *, upgrade: bool) -> None:
    """Resolve them all before the first is written: where uv finds no answer, every file stays as it is."""
    current_locks = [] if upgrade else [path for path in (lock(root, "dev"), lock(root, CUDA)) if path.exists()]
    everything = resolved(root, EXTRAS["dev"], "".join(path.read_text() for path in current_locks))
    answers = {name: everything if name == "dev" else resolved(root, EXTRAS[name], everything) for name in EXTRAS}
    for name, answer in answers.items():
        save(root, name, [block for block in blocks(answer) if not ONLY_CUDA.match(block)])
    save(root, CUDA, [block for block in blocks(everything) if ONLY_CUDA.match(block)])


def resolved(root: Path, extras: tuple[str, ...], versions: str) -> str:
    """uv's answer for these extras. It keeps the versions that are given, as far as pyproject.toml allows them.

    Raises SystemExit after uv said why there is none.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.txt"
        answer.write_text(versions)
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--python-version",
            "3.11",
            "--generate-hashes",
            "--no-header",
            "--output-file",
            str(answer),
            *(f"--extra={extra}" for extra in extras),
            "pyproject.toml",
        ]
        done = subprocess.run(command, cwd=root, stdout=subprocess.DEVNULL, check=False)  # noqa: S603 - our own arguments
        if done.returncode:
            raise SystemExit("uv did not resolve pyproject.toml; the lock files are as they were.")
        return answer.read_text()


def blocks(text: str) -> list[str]:
    """A requirement each, with its hashes and who asks for it."""
    return re.findall(r"^\w.*\n(?: .*\n)*", text, re.M)


def save(root: Path, name: str, requirements: list[str]) -> None:
    lock(root, name).parent.mkdir(exist_ok=True)
    lock(root, name).write_text(sealed(root, name, "".join(requirements)))


def sealed(root: Path, name: str, body: str) -> str:
    """The body under a header with the digest of it and of what it was made from."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    declared = [project[key] for key in ("requires-python", "dependencies", "optional-dependencies")]
    digest = hashlib.sha256(f"{json.dumps([declared, EXTRAS], sort_keys=True)}\n{body}".encode()).hexdigest()
    return HEADER.format(name=name, digest=digest) + body


def lock(root: Path, name: str) -> Path:
    return root / "requirements" / f"{name}.lock"


if __name__ == "__main__":
    sys.exit(main())
