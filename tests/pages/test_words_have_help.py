"""A word of the field that a page uses is explained on that page, beside it and not in a document elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from django.template import Context, Template

from adapterhub.core.glossary import WORDS

VOID = ("input", "br", "img", "hr", "meta", "link", "wbr")
# Text that is somebody's own, or a machine's: what was typed, evidence as it was signed, configuration, addresses.
SILENT = ("script", "style", "pre", "code", "textarea", "svg", "nav")
OWN = ("facts", "mono", "log", "prompt", "completion", "answer")


class Text(HTMLParser):
    """The text of a page's main part that AdapterHub wrote, and the words that the page explains."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.explained: set[str] = set()
        self._open: list[tuple[str, bool]] = []
        self.feed(page[page.index("<main") :])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "data-word" in given:
            self.explained.add(given["data-word"])
        if tag not in VOID:
            is_own = tag in SILENT or "data-word" in given or set(given.get("class", "").split()) & set(OWN)
            self._open.append((tag, bool(is_own)))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(is_own for _, is_own in self._open):
            self.words.append(data)


def unexplained(page: str) -> list[str]:
    text = Text(page)
    written = " ".join("".join(text.words).split())
    return [name for name, word in WORDS.items() if name not in text.explained and word.stands_in(written)]


def test_a_word_without_its_help_is_noticed() -> None:
    page = "<main><p>Each user stays in their arm.</p><p>2 replicas drift.</p>{}</main>"
    assert unexplained(page) == ["arm", "drift"]
    helped = Template("{% load adapterhub %}{% explain 'drift arm' %}").render(Context())
    assert unexplained(page.format(helped)) == []
    assert unexplained(page.format('<p class="prompt">Is a guardrail worth it?</p>')) == ["arm", "drift"]


@pytest.mark.parametrize("name", WORDS)
def test_an_explanation_is_a_clause_of_its_own(name: str) -> None:
    word = WORDS[name]
    assert word.stands_in(word.name)
    assert not word.meaning.endswith(".")
    assert len(word.meaning) < 160
