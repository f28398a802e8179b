"""Sign-in through OpenID Connect: the provider identifies the user, whose roles follow the groups at each sign-in."""

from __future__ import annotations

from typing import Any

from allauth.account.signals import user_logged_in
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialLogin
from django.conf import settings
from django.db import transaction
from django.dispatch import receiver
from django.http import HttpRequest

from adapterhub.accounts import memberships
from adapterhub.accounts.models import Project, User
from adapterhub.core.actor import system

BY = system("oidc")


class OidcAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]  # allauth has no types
    """Allauth's adapter: each user of the provider gets an account, which sees no project without a mapped group."""

    def is_open_for_signup(self, request: HttpRequest, sociallogin: SocialLogin) -> bool:
        """Return True: each user whom the provider signs in gets an account."""
        return True

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Store in the session that the provider signed the user in."""
        # The sign-in is recorded after this and needs the method in the session.
        request.session["auth_method"] = "oidc"


@receiver(user_logged_in)
def follow_groups(user: User, sociallogin: SocialLogin | None = None, **_: Any) -> None:
    """Update the user's roles from their groups at the provider after a sign-in through it; ignore other sign-ins."""
    if sociallogin:
        map_roles(user, groups_of(sociallogin.account.extra_data))


def groups_of(claims: dict[str, Any]) -> set[str]:
    """Return the first list of groups in ID token, userinfo or claims, as a set of its texts; empty without one."""
    for part in (claims.get("id_token") or {}, claims.get("userinfo") or {}, claims):
        if isinstance(groups := part.get("groups"), list):
            return {group for group in groups if isinstance(group, str)}
    return set()


@transaction.atomic
def map_roles(user: User, groups: set[str]) -> None:
    """Grant the roles that the groups map to, and revoke those that an earlier sign-in granted and no group grants now.

    `settings.OIDC_ROLES` is {group: [(project slug, role)]}. Roles that an admin granted by hand stay. Unknown and
    archived projects are skipped.
    """
    wanted = {grant for group in groups for grant in settings.OIDC_ROLES.get(group, [])}
    for membership in user.memberships.filter(by_group=True).select_related("project"):
        if (membership.project.slug, membership.role) not in wanted:
            memberships.revoke(membership, by=BY)
    for slug, role in sorted(wanted):
        if project := Project.objects.filter(slug=slug, archived_at=None).first():
            memberships.grant(project, user, role, by=BY, by_group=True)
