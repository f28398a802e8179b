"""Usage by project, alias, version and day: requests, tokens, cold loads, GPU seconds of training, and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.conf import settings
from django.db.models import QuerySet

from adapterhub.accounts.models import Project
from adapterhub.core.errors import Invalid
from registry.models import UsageDay
from training.models import TrainingRun

DIMENSIONS = ("project", "alias", "version", "day")
COUNTS = ("requests", "failures", "cold_loads", "prompt_tokens", "completion_tokens", "gpu_seconds")
# The days of a report without dates, and the most that one may have.
USUAL_DAYS, MOST_DAYS = 30, 366
MILLION, HOUR_S = 1e6, 3600.0


@dataclass(frozen=True)
class Period:
    """Days from `since` to `until`, both included."""

    since: date
    until: date

    @classmethod
    def of(cls, since: date | None, until: date | None, today: date) -> Period:
        """Return the period from `since` to `until`.

        Without `until` it ends `today`, without `since` it has USUAL_DAYS days. Raises Invalid if `since` is after the
        end, or the period has more than MOST_DAYS days.
        """
        end = until or today
        begin = since or end - timedelta(days=USUAL_DAYS - 1)
        if not 0 <= (end - begin).days < MOST_DAYS:
            raise Invalid(f"since must be before until, and at most {MOST_DAYS} days.", field="since")
        return cls(begin, end)


@dataclass
class Usage:
    """The usage of one group: its values of the dimensions, and its counts."""

    group: dict[str, Any]
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    def row(self, prices: Mapping[str, float]) -> dict[str, Any]:
        """Return the group and its counts as a JSON object, with its cost; None as cost if there are no prices.

        Prices are per million `prompt` and `completion` tokens, per `gpu_hour` and per `cold_load`.
        """
        return {**self.group, **self.counts, "cost": cost(self.counts, prices) if prices else None}


def cost(counts: Mapping[str, float], prices: Mapping[str, float]) -> float:
    """Return the cost of the counts, to six decimals; a kind without a price is free.

    Prices are per million tokens (`prompt`, `completion`), per GPU hour (`gpu_hour`) and per cold load (`cold_load`).
    """
    units = {
        "prompt": counts["prompt_tokens"] / MILLION,
        "completion": counts["completion_tokens"] / MILLION,
        "gpu_hour": counts["gpu_seconds"] / HOUR_S,
        "cold_load": counts["cold_loads"],
    }
    return round(sum(amount * prices.get(kind, 0.0) for kind, amount in units.items()), 6)


def usage(projects: QuerySet[Project], period: Period, by: Sequence[str], **only: str) -> list[dict[str, Any]]:
    """Return the usage of the projects in the period, grouped and sorted by the dimensions `by`.

    `only` selects the rows with these values, such as those of one alias. A training is counted on the day when it
    ended, for its version.
    """
    groups: dict[tuple[Any, ...], Usage] = {}
    for row in [*served(projects, period), *trained(projects, period)]:
        if all(row[name] == value for name, value in only.items()):
            key = tuple(row[name] for name in by)
            entry = groups.setdefault(key, Usage(dict(zip(by, key, strict=True))))
            for name in COUNTS:
                entry.counts[name] += row.get(name, 0)
    return [groups[key].row(settings.PRICES) for key in sorted(groups, key=lambda key: tuple(map(str, key)))]


def served(projects: QuerySet[Project], period: Period) -> list[dict[str, Any]]:
    """Return the counts of the answers given in the period, by project, alias, version and day."""
    days = UsageDay.objects.filter(project__in=projects, day__range=(period.since, period.until))
    names = {"project__slug": "project", "alias_name": "alias", "version__served_name": "version", "day": "day"}
    rows = days.values(*names, *COUNTS[:-1])
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


def trained(projects: QuerySet[Project], period: Period) -> list[dict[str, Any]]:
    """Return the GPU seconds of trainings that ended in the period, also of failed and cancelled ones.

    They are the devices times the seconds from the first start to the end, by project, version and day (UTC).
    """
    begin = datetime.combine(period.since, time.min, UTC)
    end = datetime.combine(period.until, time.max, UTC)
    ended = TrainingRun.objects.filter(project__in=projects, finished_at__range=(begin, end), started_at__isnull=False)
    rows = ended.values_list(
        "project__slug", "version__served_name", "started_at", "finished_at", "hyperparameters__devices"
    )
    return [
        {
            "project": project,
            "alias": "",
            "version": version or "",
            "day": finished.astimezone(UTC).date(),
            "gpu_seconds": round((finished - started).total_seconds() * (devices or 1), 1),
        }
        for project, version, started, finished, devices in rows
    ]
