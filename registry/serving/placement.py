"""Placement of versions on the replicas of a cluster by rendezvous hashing. Pure.

Every version has its own order of preferred replicas, from a hash of both names. A version keeps its place as long as
that replica exists and has room, so that adding or losing one of n replicas moves about 1/n of the versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

# The bytes of a hash by which replicas are compared.
SCORE_BYTES = 8


def place(
    versions: Iterable[tuple[str, int | None]],
    rooms: Mapping[int, int],
    barred: Mapping[int, Iterable[str]] | None = None,
) -> dict[int, list[str]]:
    """Return the names that each replica should hold.

    `versions` are (name, copies) by priority, None for a copy on every replica; `rooms` maps the replicas' keys to
    their slots; `barred` has the names that a replica, by its key, refuses. A version gets fewer copies if there is no
    room for all, and is left out if there is none.
    """
    contents: dict[int, list[str]] = {replica: [] for replica in rooms}
    refused = {replica: set(names) for replica, names in (barred or {}).items()}
    for name, copies in versions:
        able = [replica for replica in preferred(name, list(rooms)) if name not in refused.get(replica, ())]
        free = [replica for replica in able if len(contents[replica]) < rooms[replica]]
        for replica in free[:copies]:
            contents[replica].append(name)
    return contents


def preferred(name: str, replicas: Sequence[int]) -> list[int]:
    """Return the replicas in the order in which this version prefers them."""
    return sorted(replicas, key=lambda replica: score(name, replica), reverse=True)


def score(name: str, replica: int) -> bytes:
    """Return a hash of a version's name and a replica's key, by which replicas are compared."""
    return hashlib.sha256(f"{replica}|{name}".encode()).digest()[:SCORE_BYTES]
