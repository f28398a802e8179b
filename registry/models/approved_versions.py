"""The versions that callers may request by name.

If a protected alias serves an adapter, a project may allow only versions that a protected alias served or that were
approved for one.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db.models import Exists, OuterRef, Q, QuerySet

from adapterhub.accounts.models import NamedVersions
from adapterhub.core.errors import Invalid
from registry.models.adapter import AdapterVersion, VersionStatus
from registry.models.alias import Alias, AliasMove, AliasQuerySet
from registry.models.approval import Approval, ApprovalKind
from registry.models.rollout_share import EARNED


def approved_names(aliases: AliasQuerySet) -> dict[int, set[str]]:
    """Map the primary key of each protected alias to the served names of versions that it served or has approved.

    These are the ready ones of those that it served, and those that were approved for it or allowed by break-glass. A
    protected alias without any has an empty set.
    """
    names: dict[int, set[str]] = {pk: set() for pk in aliases.protected().values_list("pk", flat=True)}
    if not names:
        return {}
    signed = Approval.objects.filter(alias__in=names, kind=ApprovalKind.PROMOTION, status__in=EARNED)
    moves = AliasMove.objects.filter(alias__in=names)
    for alias, name in (
        *moves.filter(version__status=VersionStatus.READY).values_list("alias", "version__served_name").distinct(),
        *signed.values_list("alias", "candidate__served_name").distinct(),
    ):
        names[alias].add(name)
    return names


def require_nameable(versions: Sequence[AdapterVersion], field: str = "versions") -> None:
    """Check that the router answers requests for these versions by their own name.

    Raises Invalid, which blames `field`, for the first that it refuses.
    """
    keys = [version.pk for version in versions]
    allowed = set(nameable(AdapterVersion.objects.filter(pk__in=keys)).values_list("pk", flat=True))
    for version in versions:
        if version.pk not in allowed:
            raise Invalid(
                f"{version} is not approved: have it approved for its alias first. The project's setting "
                "named_versions decides which versions may be named.",
                field=field,
                code="version_not_approved",
            )


def nameable(versions: QuerySet[AdapterVersion]) -> QuerySet[AdapterVersion]:
    """Return the versions that callers of the router may request by their own name.

    All may be requested, except those of an adapter that a protected alias serves, in a project that allows only
    approved versions: these must have been served by such an alias or approved for one.
    """
    closed = Alias.objects.protected().filter(project__named_versions=NamedVersions.APPROVED)
    closed = closed.filter(version__adapter=OuterRef("adapter"))
    of_adapter = Q(alias__policy__quorum__gte=1, alias__version__adapter=OuterRef("adapter"))
    signed = Approval.objects.filter(kind=ApprovalKind.PROMOTION, status__in=EARNED, candidate=OuterRef("pk"))
    served = AliasMove.objects.filter(version=OuterRef("pk"))
    return versions.filter(~Exists(closed) | Exists(served.filter(of_adapter)) | Exists(signed.filter(of_adapter)))
