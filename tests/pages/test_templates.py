"""Templates are indented by what they hold, and an error in one is found by djLint."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from django.template import Context, Template

from adapterhub.templatetags.adapterhub import calls, is_trained

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
BLOCKS = "article|details|div|dl|fieldset|form|header|main|nav|ol|section|table|tbody|thead|tr|ul"
# A tag that opens on a line on which it is not closed.
OPENED = re.compile(rf"<({BLOCKS})\b(?!.*</\1>)|\{{% (block|for|if|sentence|with)\b(?!.*\{{% end\2)")


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def badly_indented(text: str) -> list[str]:
    """Return the lines that open two blocks, or one whose content is not indented further."""
    lines = [line for line in re.sub(r"(?s)<pre.*?</pre>", "<pre></pre>", text).splitlines() if line.strip()]
    return [
        line
        for line, after in pairwise(lines)
        if (opened := list(OPENED.finditer(line)))
        and (len(opened) > 1 or (opened[0].start() == indent(line) and indent(after) <= indent(line)))
    ]


def test_what_a_block_holds_stands_further_in() -> None:
    assert {str(path): lines for path in TEMPLATES if (lines := badly_indented(path.read_text()))} == {}


@pytest.mark.parametrize(
    "text",
    [
        '<div class="grid">\n<p>Text</p>\n</div>',
        '{% if user %}<div class="frame">\n    <p>Text</p>\n  </div>{% endif %}',
        "{% for row in rows %}\n<p>Text</p>\n{% endfor %}",
    ],
)
def test_a_template_without_indentation_is_noticed(text: str) -> None:
    assert badly_indented(text) != []


@pytest.mark.slow
def test_djlint_takes_every_template_and_refuses_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / "broken.html").write_text('<img src="/a.png">\n')
    lint = [str(Path(sys.executable).with_name("djlint")), "--lint", "--quiet"]
    assert subprocess.run([*lint, "templates"], cwd=ROOT, check=False).returncode == 0
    broken = subprocess.run([*lint, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (broken.returncode, "H013" in broken.stdout) == (1, True)


def test_a_message_shows_its_calls_and_is_coloured_where_the_loss_counts_it() -> None:
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "look_up", "arguments": '{"article": 17}'}}]}
    assert calls(message) == ' look_up({"article": 17})'
    assert [
        is_trained({**message, **weight}, row) for weight in ({}, {"weight": 0}) for row in ({}, {"weight": 0})
    ] == [
        True,
        False,
        False,
        False,
    ]
    assert not is_trained({"role": "user"}, {})


def test_a_time_past_says_how_long_ago_it_was_to_readers_and_the_script() -> None:
    at = datetime.now(UTC) - timedelta(hours=3)
    text = Template("{% load adapterhub %}{% ago at %}").render(Context({"at": at}))
    assert text == f'<time datetime="{at.isoformat()}" data-shape="ago">3\xa0hours ago</time>'


def test_a_list_is_laid_out_in_one_template() -> None:
    texts = {path.name: path.read_text() for path in TEMPLATES}
    lists = {name for name, text in texts.items() if '{% extends "list_page.html" %}' in text}
    assert {"tokens.html", "invitations.html", "webhooks.html", "deliveries.html", "service_accounts.html"} <= lists
    assert {
        name for name in lists if "components/find.html" in texts[name] or "components/pager.html" in texts[name]
    } == set()
    assert {name for name, text in texts.items() if "naturaltime" in text} == set()


def test_a_sentence_over_lines_is_one_line_and_escaped_once() -> None:
    text = "{% load adapterhub %}{% sentence as label %}\n  Tom {{ sign }}\n  'Jerry'\n{% endsentence %}{{ label }}"
    assert Template(text).render(Context({"sign": "& <b>"})) == "Tom &amp; &lt;b&gt; 'Jerry'"


def test_times_have_one_format_with_their_zone() -> None:
    """`moment`, `ago` and `in_utc` write every time; `date` alone writes addresses and days."""
    formats = [
        f"{file.relative_to(ROOT)}: {shape}"
        for file in (ROOT / "templates").rglob("*.html")
        for shape in re.findall(r"\|date:(?:\"([^\"]*)\"|'([^']*)')", file.read_text())
        if not {"c", "j M Y"} & set(shape)
    ]
    assert formats == []


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("set `r` to 8", "set <code>r</code> to 8"),
        ("`<b>` & `x`", "<code>&lt;b&gt;</code> &amp; <code>x</code>"),
        ("a ` alone <i>", "a ` alone &lt;i&gt;"),
        ("`a` and ` alone", "<code>a</code> and ` alone"),
        ("plain", "plain"),
    ],
)
def test_what_stands_between_backticks_is_code(text: str, html: str) -> None:
    assert Template("{% load adapterhub %}{{ text|with_code }}").render(Context({"text": text})) == html
