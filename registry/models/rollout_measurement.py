"""Measurements of a rollout, one row for each minute, arm and metric, and the users that it has served."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from django.contrib.postgres.fields import ArrayField
from django.db import models, transaction
from django.db.models import Count, Exists, OuterRef, Q

from registry.experiments.confidence_sequences import Sample
from registry.experiments.guardrails import Arm, Minute, Values
from registry.experiments.metrics import METRICS, of_report
from registry.experiments.quantiles import EDGES, Histogram
from registry.experiments.sample_ratio import Exposure
from registry.models.rollout import Rollout
from serving_client.reports import MeasuredAnswer

# A None value records only that the metric was reported in that minute.
Measured = tuple[Rollout, str, datetime, str, float | None]
UnitKey = tuple[Any, str, str]  # rollout's key, unit, arm
BASELINE_HOURS, BASELINE_ANSWERS = 1, 1000
MEASURED_FIELDS = ("status", "ttft_ms", "total_ms", "prompt_tokens", "completion_tokens")


class RolloutMinute(models.Model):
    """Sums of one metric of one arm in one minute: the values' `count`, their `total`, and the sum of their `squares`.

    `histogram` counts values in seconds by the number of their bin between `registry.experiments.quantiles.EDGES`;
    empty bins are left out.
    """

    rollout = models.ForeignKey(Rollout, models.PROTECT, related_name="minutes")
    at = models.DateTimeField(help_text="The minute's beginning.")
    arm = models.CharField(max_length=10)
    metric = models.CharField(max_length=30)
    count = models.PositiveIntegerField(default=0)
    total = models.FloatField(default=0)
    squares = models.FloatField(default=0)
    histogram = models.JSONField(default=dict)

    class Meta:
        ordering = ["at"]
        constraints = [
            models.UniqueConstraint(fields=["rollout", "at", "arm", "metric"], name="one_row_a_minute_arm_and_metric")
        ]

    def __str__(self) -> str:
        return f"{self.metric} of the {self.arm} at {self.at:%H:%M}"

    @classmethod
    def add(cls, measured: Iterable[Measured]) -> None:
        """Add each (rollout, arm, time, metric, value) to the row of its minute, all in one transaction.

        A value of None only ensures that the row exists.
        """
        grouped: dict[tuple[Any, ...], list[float]] = {}
        for rollout, arm, at, metric, value in measured:
            minute = at.replace(second=0, microsecond=0)
            values = grouped.setdefault((rollout.pk, minute, arm, metric), [])
            values += [] if value is None else [value]
        with transaction.atomic():
            for key in sorted(grouped, key=str):
                cls.add_values(*key, values=grouped[key])

    @classmethod
    def add_values(cls, rollout: Any, at: datetime, arm: str, metric: str, *, values: list[float]) -> None:
        """Add values to the row of one minute, arm and metric, which is created if it is missing.

        `rollout` is the rollout's primary key. Values of a metric in seconds are counted in the histogram, too.
        """
        key = {"rollout_id": rollout, "at": at, "arm": arm, "metric": metric}
        RolloutMinute.objects.bulk_create([RolloutMinute(**key)], ignore_conflicts=True)
        if not values:
            return
        row = cls.objects.select_for_update().get(**key)
        if METRICS[metric].unit == "seconds":
            row.histogram = sparse(row.dense() + Histogram.of(values).counts)
        row.count, row.total = row.count + len(values), row.total + sum(values)
        row.squares += sum(value * value for value in values)
        row.save(update_fields=["count", "total", "squares", "histogram"])

    def dense(self) -> np.ndarray:
        """Return the counts of all bins of the histogram, the empty ones included."""
        counts = np.zeros(len(EDGES) + 1, dtype=np.int64)
        for place, count in self.histogram.items():
            counts[int(place)] = count
        return counts

    @classmethod
    def remember_baseline(cls, rollout: Rollout) -> None:
        """Store, unless that was done already, the stable version's answers before the rollout as the baseline arm.

        These are its latest BASELINE_ANSWERS answers under the alias in BASELINE_HOURS. If the control is past a margin
        against this baseline too, there is an outage that is not the candidate's fault.
        """
        if rollout.minutes.filter(arm=Arm.BASELINE).exists():
            return
        for answer in answers_before(rollout)[:BASELINE_ANSWERS]:
            values = of_report(MeasuredAnswer(**{name: getattr(answer, name) for name in MEASURED_FIELDS}))
            cls.add((rollout, Arm.BASELINE, answer.at, metric, value) for metric, value in values.items())

    def as_minute(self, arm: Arm) -> Minute:
        """Return the row as a Minute, input of the statistics, attributed to this arm."""
        values = Values(Sample(self.count, self.total, self.squares), Histogram(self.dense()))
        return Minute(self.at, arm, METRICS[self.metric].label, values)


def answers_before(rollout: Rollout) -> models.QuerySet[Any]:
    """Return the stable version's answers under the alias in the BASELINE_HOURS before the rollout, newest first."""
    opened_at = rollout.opened_at or rollout.created_at
    since = opened_at - timedelta(hours=BASELINE_HOURS)
    return rollout.stable.responses.filter(alias_name=rollout.alias.name, at__range=(since, opened_at))


def sparse(counts: np.ndarray) -> dict[str, int]:
    """Return the counts that are not zero, by their index in the array as text."""
    return {str(place): int(counts[place]) for place in np.flatnonzero(counts)}


class RolloutUnitQuerySet(models.QuerySet["RolloutUnit"]):
    """Users whom rollouts served, selected or counted."""

    def in_both_arms(self, rollout: Rollout) -> RolloutUnitQuerySet:
        """Return the candidate's users whom the control served too; a correct router never lets that happen."""
        units = self.filter(rollout=rollout)
        other = units.filter(arm=Arm.CONTROL, unit=OuterRef("unit"))
        return units.filter(Exists(other), arm=Arm.CANDIDATE)

    def split(self) -> tuple[list[Exposure], float]:
        """Count one rollout's users in one query, for the check of its split.

        Returns (exposures, fraction): the users of each arm first served at a weight of up to 50 percent, where both
        arms are of equal size, and the fraction (0 to 1) of the candidate's users whom the control served too. Without
        users at such a weight it is ([], 0.0).
        """
        control = RolloutUnit.objects.filter(rollout=OuterRef("rollout"), unit=OuterRef("unit"), arm=Arm.CONTROL)
        rows = self.values("arm").annotate(
            exposed=Count("pk", filter=Q(weight__gt=0, weight__lte=50)),
            both=Count("pk", filter=Q(Exists(control), arm=Arm.CANDIDATE)),
        )
        users = {row["arm"]: row["exposed"] for row in rows}
        if not any(users.values()):
            return [], 0.0
        candidates = users.get(Arm.CANDIDATE, 0)
        both = sum(row["both"] for row in rows)
        return [Exposure(users.get(Arm.CONTROL, 0), candidates, 0.5)], both / candidates if candidates else 0.0


class RolloutUnit(models.Model):
    """A user (as a hash) whom an arm of a rollout served, and the metrics for which their first value was counted.

    One user's answers are correlated, so the statistics use one value of each user and sum only independent values.
    """

    rollout = models.ForeignKey(Rollout, models.PROTECT, related_name="units")
    unit = models.CharField(max_length=64)
    arm = models.CharField(max_length=10)
    weight = models.FloatField(help_text="Percent, when the user was first met.")
    counted = ArrayField(models.CharField(max_length=50), default=list, help_text="Arm and metric, each once.")

    objects = RolloutUnitQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["rollout", "unit", "arm"], name="a_user_is_met_once_by_an_arm")]

    def __str__(self) -> str:
        return f"{self.unit[:8]} in the {self.arm}"

    @property
    def key(self) -> UnitKey:
        """Return (rollout's primary key, hash of the user, arm)."""
        return self.rollout_id, self.unit, self.arm

    @classmethod
    def locked(cls, drafts: Iterable[RolloutUnit]) -> dict[UnitKey, RolloutUnit]:
        """Insert the users that are new and return the rows of all `drafts` by their keys, locked until the commit."""
        wanted = {one.key: one for one in drafts}
        RolloutUnit.objects.bulk_create([wanted[key] for key in sorted(wanted, key=str)], ignore_conflicts=True)
        units = {unit for _, unit, _ in wanted}
        rows = cls.objects.filter(rollout__in={pk for pk, _, _ in wanted}, unit__in=units).order_by("pk")
        return {row.key: row for row in rows.select_for_update()}

    @classmethod
    def count_first(cls, measurements: Iterable[tuple[RolloutUnit, Measured]]) -> None:
        """Add each user's first value of a metric in an arm to the row of its minute, and remember it as counted.

        For a later value only ensure that the minute has a row. `measurements` are pairs of a locked user and (rollout,
        arm, time, metric, value).
        """
        changed, measured = {}, []
        for unit, (rollout, arm, at, metric, value) in measurements:
            name = f"{arm} {metric}"
            is_first = name not in unit.counted
            if is_first:
                unit.counted.append(name)
                changed[unit.pk] = unit
            measured.append((rollout, arm, at, metric, value if is_first else None))
        RolloutUnit.objects.bulk_update(changed.values(), ["counted"])
        RolloutMinute.add(measured)
