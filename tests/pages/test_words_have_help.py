"""A word of the field that a page uses is explained on that page, beside it and not in a document elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from django.template import Context, Template
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import Project, User
from adapterhub.core.glossary import WORDS
from registry.models import AdapterVersion, Alias, Approval, Rollout
from tests.pages.every_page import every_page
from tests.pages.realistic import World, cast
from training.models import Dataset

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


@pytest.mark.slow
def test_every_word_of_the_field_is_explained_on_its_page(
    project: Project, alice: User, alias: Alias, candidate: AdapterVersion, dataset: Dataset, client: Client
) -> None:
    cast(project)
    world = World(project, alice, adapters=12, versions=48)
    pages = every_page(world, candidate, dataset)
    pages |= {f"rollout {each.status}": reverse("rollout", args=[each.pk]) for each in Rollout.objects.all()}
    pages |= {f"approval {each.pk}": reverse("approval", args=[each.pk]) for each in Approval.objects.all()}
    User.objects.filter(pk=alice.pk).update(is_superuser=True, is_staff=True)
    client.force_login(alice)
    faults = {}
    for name, url in pages.items():
        # The dossier repeats records under headings that a regulation gives.
        if name != "dossier" and (words := unexplained(client.get(url).content.decode())):
            faults[name] = words
    assert faults == {}


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
