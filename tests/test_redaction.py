"""No secret reaches a log, whatever it stands in."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
from pathlib import Path

import pytest
from django.conf import settings

from adapterhub.redaction import Redacting, RedactingJson, redacted
from serving_client import log_lines

ROOT = Path(__file__).parent.parent
TOKEN = "ah_abcdefgh1234_" + "S3cret-_" * 5


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"GET / Authorization: Bearer {TOKEN}", "S3cret"),
        (f"{{'token': '{TOKEN}'}}", "S3cret"),
        ("Authorization: Bearer eyJhbGciOi.J9.abc", "eyJhbGciOi"),
        ("cannot reach postgres://app:hunter2@db:5432/hub", "hunter2"),
        ("redis://:hunter2@valkey/0", "hunter2"),
        ("password=hunter2&user=alice", "hunter2"),
        ('{"client_secret": "hunter2"}', "hunter2"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END PRIVATE KEY-----", "MC4CAQ"),
    ],
)
def test_secrets_are_hidden(text: str, secret: str) -> None:
    assert secret not in redacted(text)
    assert "[hidden" in redacted(text)


def test_a_line_without_a_secret_stays_and_a_token_keeps_its_id() -> None:
    assert redacted("INFO alias eu moved to v3: https://hub/x?a=1") == "INFO alias eu moved to v3: https://hub/x?a=1"
    assert redacted(TOKEN) == "ah_abcdefgh1234_[hidden]"


@pytest.mark.threat("C2")
def test_arguments_and_tracebacks_are_covered() -> None:
    stream = io.StringIO()
    console = logging.StreamHandler(stream)
    console.setFormatter(Redacting("%(message)s"))
    log = logging.Logger("of-the-test")
    log.addHandler(console)
    try:
        raise ValueError(f"refused {TOKEN}")
    except ValueError:
        log.exception("with %s", "postgres://app:hunter2@db/hub")
    assert "hunter2" not in stream.getvalue()
    assert "S3cret" not in stream.getvalue()
    assert "refused ah_abcdefgh1234_[hidden]" in stream.getvalue()


@pytest.mark.threat("H4")
@pytest.mark.parametrize("typed", ["bob\nINFO alias eu moved to v9", "bob\r\n", "bob\x1b[2K", "bob\u2028x", "bob\x00"])
def test_what_somebody_typed_begins_no_line_and_moves_no_cursor(typed: str) -> None:
    record = logging.LogRecord("web", logging.WARNING, "", 0, "refused %s", (typed,), None)
    line = Redacting("%(levelname)s %(message)s").format(record)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert line.startswith("WARNING refused bob")


@pytest.mark.threat("H4")
@pytest.mark.parametrize(
    "program", ["serving_client/router/__main__", "serving_client/engine/__main__", "adapterhub/replica_sidecar"]
)
def test_the_other_processes_write_one_line_too(program: str) -> None:
    """Text of an engine, or of a table, reaches a log of the router."""
    tree = ast.parse((ROOT / f"{program}.py").read_text())
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "log_lines.start" in calls
    assert "logging.basicConfig" not in calls
    record = logging.LogRecord("router", logging.ERROR, "", 0, "%s", ("a\nERROR forged\x1b[2J",), None)
    assert log_lines.OneLine("%(message)s").format(record) == r"a\nERROR forged\x1b[2J"


def test_the_console_of_the_product_redacts() -> None:
    formatters = settings.LOGGING["formatters"]
    assert settings.LOGGING["handlers"]["console"]["formatter"] == "text"
    assert formatters["text"]["()"] == "adapterhub.redaction.Redacting"
    assert formatters["json"]["()"] == "adapterhub.redaction.RedactingJson"


@pytest.mark.threat("H4")
@pytest.mark.parametrize("typed", ["bob\nINFO forged", "bob\x1b[2K", "bob\u2028x", "bob\x00", "bob\ud800", 'bob"}'])
def test_a_line_of_json_is_one_object_in_ascii(typed: str) -> None:
    record = logging.LogRecord("web", logging.WARNING, "", 0, "refused %s", (typed,), None)
    record.created = 1_790_000_000.5
    line = RedactingJson().format(record)
    assert line.isascii()
    assert line.isprintable()
    fields = {
        "time": "2026-09-21T14:13:20.500+00:00",
        "level": "WARNING",
        "logger": "web",
        "message": f"refused {typed}",
    }
    assert json.loads(line) == fields


def test_json_hides_secrets_in_every_field() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQ\n-----END PRIVATE KEY-----"
    try:
        raise ValueError("postgres://app:hunter22@db/x")
    except ValueError:
        record = logging.LogRecord("web", logging.ERROR, "", 0, "key %s after", (key,), sys.exc_info())
    fields = json.loads(RedactingJson().format(record))
    assert fields["message"] == "key [hidden private key] after"
    assert "hunter22" not in fields["exception"]
    assert "Traceback" in fields["exception"]
