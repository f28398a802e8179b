"""The split of a dataset into training and held-out rows by groups; no group is in both. No database."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
HELD_OUT_SHARE = 0.1


def text_hash(text: str) -> int:
    """Return a 64-bit hash of the text that ignores case, white space and Unicode form."""
    plain = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest())


def turns_of(messages: list[dict[str, Any]]) -> list[str]:
    """Return a text for each turn of a conversation, from its role, content and calls, without system turns."""
    return [
        "\x1f".join((turn["role"], turn.get("content") or "", json.dumps(turn.get("tool_calls"), sort_keys=True)))
        for turn in messages
        if turn["role"] != "system"
    ]


def prefix_hashes(turns: list[str]) -> list[int]:
    """Return the hash of the first n turns for n = 0 .. len(turns); each is computed from the one before."""
    hashes = [0]
    for turn in turns:
        hashes.append(text_hash(f"{hashes[-1]}\x1e{turn}"))
    return hashes


@dataclass
class Keys:
    """Hashes of all rows: of their groups, their prompts, and conversations with their beginnings.

    `prompt_hashes` has the hash of everything before the answer, 0 if that is nothing. `wholes` has the hash of a whole
    conversation, 0 for other rows. `begun_rows` and `beginnings` are pairs of a row's index and the hash of its
    conversation up to an earlier answer.
    """

    groups: array[int]
    prompt_hashes: array[int]
    wholes: array[int]
    begun_rows: array[int]
    beginnings: array[int]

    @classmethod
    def none(cls) -> Keys:
        """Return the keys of no rows."""
        return cls(*(array("Q") for _ in range(5)))

    def add(self, row: Row) -> None:
        """Add a row; its group is its document, else its prompt or text, or its conversation before the last answer."""
        self.prompt_hashes.append(prompt_hash(row))
        if "document" in row or not ("messages" in row or isinstance(row.get("prompt"), list)):
            self.groups.append(text_hash(key_of(row)))
            self.wholes.append(0)
        elif "messages" in row:
            self.add_conversation(row["messages"], len(turns_of(row["messages"])) - 1)
        else:
            answer = row["completion"] if "completion" in row else row["chosen"]
            self.add_conversation([*row["prompt"], *answer], len(turns_of(row["prompt"])))

    def add_conversation(self, messages: list[dict[str, Any]], prompt_turns: int) -> None:
        """Add a conversation, whose group is its first `prompt_turns` turns.

        The hash of each part of it that ends with an earlier answer is stored, too.
        """
        hashes = prefix_hashes(turns_of(messages))
        for turn, place in zip(without_system(messages)[:-1], hashes[1:], strict=False):
            if turn["role"] == "assistant":
                self.begun_rows.append(len(self.groups))
                self.beginnings.append(place)
        # A conversation that is one answer alone has nothing before it: it is its own group.
        self.groups.append(hashes[prompt_turns] or hashes[-1])
        self.wholes.append(hashes[-1])

    def united(self) -> Any:
        """Return the group of every row; a conversation that is the beginning of another one gets that one's group."""
        groups = np.array(self.groups, np.uint64)
        wholes, beginnings = np.array(self.wholes, np.uint64), np.array(self.beginnings, np.uint64)
        begun = np.isin(beginnings, wholes)
        if not begun.any():
            return groups
        longer = groups[np.array(self.begun_rows, np.int64)[begun]]
        order = np.argsort(wholes, kind="stable")
        shorter = groups[order[np.searchsorted(wholes[order], beginnings[begun])]]
        return relabelled(groups, zip(longer.tolist(), shorter.tolist(), strict=True))


def prompt_hash(row: Row) -> int:
    """Return a hash that is equal for rows with the same prompt and different answers; 0 for a row without a prompt.

    It covers everything before a row's answer, including the system turn and the tools; for a pair also both answers in
    any order, and for an answer marked good or bad the answer.
    """
    if "chosen" in row or "label" in row:
        answers = [row[name] for name in ("completion", "chosen", "rejected") if name in row]
        texts = sorted(json.dumps(answer, sort_keys=True, ensure_ascii=False) for answer in answers)
        return text_hash(json.dumps([row.get("tools"), row["prompt"], *texts], sort_keys=True, ensure_ascii=False))
    if "messages" in row:
        before = [*row.get("tools", ()), *row["messages"][:-1]]
        return text_hash(json.dumps(before, sort_keys=True, ensure_ascii=False)) if before else 0
    return text_hash(row["prompt"]) if "completion" in row else 0


def key_of(row: Row) -> str:
    """Return the text by which a row without a conversation is grouped: its document, else prompt, else text."""
    if "document" in row:
        return f"document\x1f{row['document']}"
    return str(row.get("prompt") or row["text"])


def without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns other than system turns: one for each text of `turns_of`."""
    return [turn for turn in messages if turn["role"] != "system"]


def relabelled(groups: Any, pairs: Any) -> Any:
    """Return the groups with the two of each pair united; a united group has the least hash of its members."""
    parent: dict[int, int] = {}

    def root(group: int) -> int:
        while (above := parent.get(group, group)) != group:
            parent[group] = parent.get(above, above)
            group = above
        return group

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    moved = {group: root(group) for group in parent}
    names, places = np.unique(groups, return_inverse=True)
    return np.array([moved.get(name, name) for name in names.tolist()], np.uint64)[places]


@dataclass(frozen=True)
class Split:
    """The division of the rows: `held_out` has one boolean for each row.

    `groups` is the number of groups, `largest` the number of rows in the largest one.
    """

    held_out: Any
    groups: int
    largest: int

    @property
    def is_possible(self) -> bool:
        """Return True if there is more than one group."""
        return self.groups > 1


def split(keys: Keys) -> Split:
    """Choose the held-out rows: whole groups from the lowest hash on, up to HELD_OUT_SHARE of the rows.

    A group that would exceed the share is skipped. If every group exceeds it, the smallest is held out; a single
    group never is.
    """
    names, places, sizes = np.unique(keys.united(), return_inverse=True, return_counts=True)
    if len(names) < 2:
        return Split(np.zeros(len(places), bool), len(names), int(sizes.max(initial=0)))
    room = max(1, round(HELD_OUT_SHARE * len(places)))
    chosen = np.zeros(len(names), bool)
    for group, size in enumerate(sizes.tolist()):
        if size <= room:
            chosen[group] = True
            room -= size
        if not room:
            break
    if not chosen.any():
        chosen[int(sizes.argmin())] = True
    return Split(chosen[places], len(names), int(sizes.max()))
