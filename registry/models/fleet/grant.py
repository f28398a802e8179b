"""Grants of clusters to other projects, and the shares of a cluster that they give."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils.timezone import now

from adapterhub.accounts.models import Project

SHARES = ("slots", "requests_per_s", "tokens_per_min")


class ClusterGrantQuerySet(models.QuerySet["ClusterGrant"]):
    """Grants, selected by their state."""

    def standing(self) -> ClusterGrantQuerySet:
        """Return the grants that were not withdrawn."""
        return self.filter(withdrawn_at=None)


class ClusterGrant(models.Model):
    """The permission of a cluster's owner that its replicas serve another project, and that project's acceptance.

    `project` is null until the project accepts: no versions go to a cluster that their project did not choose.
    """

    cluster = models.ForeignKey("registry.Cluster", models.PROTECT, related_name="grants")
    offered_to = models.SlugField(help_text="Slug of the project, whether it exists or not.")
    project = models.ForeignKey(Project, models.PROTECT, null=True, related_name="grants")
    granted_by = models.CharField(max_length=200)
    granted_at = models.DateTimeField(default=now, editable=False)
    withdrawn_at = models.DateTimeField(null=True, editable=False)
    slots = models.PositiveIntegerField(
        null=True, help_text="Adapter slots of a replica that are the project's; null: an equal part."
    )
    requests_per_s = models.FloatField(null=True, help_text="Requests a second that it may send; null: no limit.")
    tokens_per_min = models.PositiveIntegerField(null=True, help_text="Tokens a minute; null: no limit.")

    objects = ClusterGrantQuerySet.as_manager()

    class Meta:
        ordering = ["-granted_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["cluster", "offered_to"],
                condition=models.Q(withdrawn_at=None),
                name="one_standing_grant_per_project",
            ),
            models.CheckConstraint(
                condition=~models.Q(slots=0) & ~models.Q(tokens_per_min=0) & ~models.Q(requests_per_s__lte=0),
                name="shares_are_above_zero",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.cluster} for {self.offered_to}"

    @property
    def share_key(self) -> str:
        """The key under which routers count what the project uses of the cluster: "CLUSTER/PROJECT".

        CLUSTER is the cluster's primary key, PROJECT the project's slug.
        """
        return f"{self.cluster_id}/{self.offered_to}"

    def shares(self) -> dict[str, Any]:
        """Return the grant's `slots`, `requests_per_s` and `tokens_per_min`; None where none is set."""
        return {name: getattr(self, name) for name in SHARES}
