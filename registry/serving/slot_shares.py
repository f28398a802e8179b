"""Division of a cluster's slots among projects, by their shares. Pure.

A share is the number of slots that no other project's requests can take. Slots that a project leaves free are lent to
the others, in the order of priority.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def parted(total: int, owner: str, granted: Mapping[str, int | None]) -> dict[str, int]:
    """Return the number of slots of each project.

    `granted` maps projects to the slots of their grants. Those without a number and the owner share the rest equally,
    and the owner gets what remains of it.
    """
    fixed = {project: slots for project, slots in granted.items() if slots is not None}
    rest = max(0, total - sum(fixed.values()))
    sharers = len(granted) - len(fixed) + 1
    equal = rest // sharers
    parts = {project: fixed.get(project, equal) for project in granted}
    return {**parts, owner: rest - equal * (sharers - 1)}


def shared_out(candidates: Sequence[tuple[str, str, int]], parts: Mapping[str, int], total: int) -> list[str]:
    """Return the names that get slots, in the order of the candidates; they take at most `total` slots.

    `candidates` are (name, project, slots that it takes), the most urgent first. Each project first gets its part of
    `parts`; what is left over goes to the most urgent of the others.
    """
    left, free = dict(parts), total
    chosen: set[str] = set()
    for name, project, slots in candidates:
        if slots <= min(left.get(project, 0), free) and name not in chosen:
            left[project] -= slots
            free -= slots
            chosen.add(name)
    for name, _, slots in candidates:
        if slots <= free and name not in chosen:
            free -= slots
            chosen.add(name)
    return [name for name in dict.fromkeys(name for name, *_ in candidates) if name in chosen]
