"""The commands for blind tests. Programs start them and read results; people vote on the page of the comparison."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.session import AsJson, hub, say
from adapterhub.client import calls
from adapterhub.client.rest_types import BlindTest

blind = typer.Typer(
    no_args_is_help=True, help="Compare the answers of several versions without knowing which version gave which."
)
LINE = 80  # letters of a prompt
Name = Annotated[str, typer.Argument(metavar="ADAPTER")]


def prompts_in(file: Path | None) -> list[str]:
    """Return the prompts in the file; none without a file.

    A file whose name ends in .jsonl is JSON Lines, and its prompts may have many lines; any other has one prompt on
    each line that is not blank. Raises Ended if it is no such file.
    """
    if file is None:
        return []
    if not file.is_file():
        raise Ended(f"--prompts {str(file)!r} is not a file.", Exit.USAGE)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise Ended(f"--prompts {str(file)!r} is not UTF-8: {error}", Exit.USAGE) from None
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, start=1) if line.strip()]
    if file.suffix.lower() != ".jsonl":
        return [line for _, line in numbered]
    return [prompt_of(line, f"{file}, line {number}") for number, line in numbered]


def prompt_of(line: str, place: str) -> str:
    """Return the prompt in a line of JSON Lines. Raises Ended, naming the place, if there is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Ended(f"{place} is not JSON: {error}", Exit.USAGE) from None
    prompt = row.get("prompt") if isinstance(row, dict) and row.keys() == {"prompt"} else row
    if not isinstance(prompt, str) or not prompt.strip():
        raise Ended(f'{place} must be a text, or an object such as {{"prompt": "..."}}.', Exit.USAGE)
    return prompt


def preferred(test: BlindTest) -> str:
    """Return how many votes each version has: `v3 2, v4 1, no difference 0`."""
    named = [(f"v{vote['number']}" if vote["number"] else "no difference", vote["votes"]) for vote in test["votes"]]
    return ", ".join(f"{name} {count}" for name, count in named)


def short(test: BlindTest) -> str:
    """Return the test's prompt, cut to LINE characters."""
    return shorten(test["prompt"], LINE)


@blind.command()
def ask(
    adapter: Name,
    versions: Annotated[list[int], typer.Option("--version", help="A version's number; give two to four.")],
    prompts: Annotated[list[str], typer.Option("--prompt", help="Can be repeated.")] = [],  # noqa: B006
    file: Annotated[
        Path | None,
        typer.Option("--prompts", help='A file with one prompt per line, or, as .jsonl, a text or {"prompt": ...}.'),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of each answer.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Start a blind test of each prompt: send it to every version, for people to vote on the answers."""
    all_prompts = [*prompts, *prompts_in(file)]
    if not all_prompts:
        raise Ended("Name a prompt with --prompt, or a file of them with --prompts.", Exit.USAGE)
    with hub() as api:
        tests = api.send(calls.ask_blindly(adapter, versions, all_prompts, max_tokens=max_tokens))
    say(tests, "\n".join(f"{test['id']} {short(test)}" for test in tests), as_json)


@blind.command()
def results(adapter: Name, as_json: AsJson = False) -> None:
    """Show which versions people preferred, newest test first."""
    with hub() as api:
        tests = list(api.rows(calls.blind_tests(adapter)))
        if not tests:
            # A list does not say that there is no such adapter.
            api.send(calls.get(f"adapters/{adapter}/"))
    say(tests, "\n".join(f"{test['id']} {preferred(test)}: {short(test)}" for test in tests), as_json)
