"""Limits of projects at the routers, requests a second and tokens a minute: their own and the installation's."""

from __future__ import annotations

from django.conf import settings
from django.db import transaction

from adapterhub.accounts.models import Project
from adapterhub.accounts.tokens import LIMITS
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid


@transaction.atomic
def limit(project: Project, *, reason: str, by: Actor, **limits: float | None) -> None:
    """Change the project's own limits at the routers, and record that; one that is not named stays.

    `limits` are `requests_per_s` and `tokens_per_min`. None removes a limit: then the installation's holds. Raises
    Invalid for a limit that is not above 0, or is above the installation's or the highest that there is.
    """
    require_allowed(limits)
    locked = Project.objects.select_for_update().get(pk=project.pk)
    before = limits_of(locked)
    for name, value in limits.items():
        setattr(locked, name, value)
    locked.save(update_fields=list(limits))
    AuditEvent.record(
        Tag.PROJECT_CHANGED,
        locked,
        by=by,
        project=locked,
        before=before,
        after=limits_of(locked),
        reason=reason,
    )
    project.refresh_from_db()


def require_allowed(limits: dict[str, float | None]) -> None:
    """Check that a project may have these limits. Raises Invalid naming the limit that it may not have."""
    highest = installation_limits()
    for name, value in limits.items():
        most = highest[name] or LIMITS[name]
        if value is not None and not 0 < value <= most:
            whose = "the installation's limit of each project" if highest[name] else "the highest that there is"
            raise Invalid(f"{name} lies above 0 and at most at {most:,.0f}, {whose}: correct it.", field=name)


def installation_limits() -> dict[str, float | None]:
    """Return the installation's limits, which no project exceeds; None where it has none."""
    return {
        "requests_per_s": settings.PROJECT_REQUESTS_PER_S or None,
        "tokens_per_min": settings.PROJECT_TOKENS_PER_MIN or None,
    }


def limits_of(project: Project) -> dict[str, float | None]:
    """Return the project's own limits; None where it has none."""
    return {name: getattr(project, name) for name in LIMITS}


def limits_now(project: Project) -> dict[str, float | None]:
    """Return the limits that routers keep: of the project's own and the installation's the lower; None without both."""
    own, highest = limits_of(project), installation_limits()
    return {name: min(filter(None, (own[name], highest[name])), default=None) for name in LIMITS}
