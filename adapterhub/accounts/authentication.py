"""Authentication: of people by password, of REST requests by bearer token, and again while a long answer is sent."""

from __future__ import annotations

import hmac
from typing import Any

from django.contrib.auth import get_user
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from adapterhub.accounts.login_lockout import claim, forget, sign_in_brakes
from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.accounts.sessions import is_over
from adapterhub.api.throttling import require_room_for_stranger
from adapterhub.core.tokens import id_and_secret_of, secret_hash


class PasswordBackend(ModelBackend):
    """Authentication by name and password, with lockout. Every sign-in with a password goes through it."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **_: Any
    ) -> User | None:
        """Return the user whose password it is; None if a name or password is missing.

        Raises TooMany while the name is locked out at this address, and PermissionDenied for a wrong password, so that
        no other backend hashes it again.
        """
        if username is None or password is None:
            return None
        brakes = sign_in_brakes(username, request)
        claim(brakes)
        user = super().authenticate(request, username, password)
        if user is None:
            raise PermissionDenied
        forget(brakes)
        return user


class TokenAuthentication(BaseAuthentication):
    """Authentication by `Authorization: Bearer ah_<id>_<secret>`; the token is set as `request.auth`."""

    def authenticate(self, request: Request) -> tuple[User | AnonymousUser, ApiToken] | None:
        """Return the token's user (anonymous for the server's own) and the token; None without a bearer token.

        The time of use is stored with the token. Raises AuthenticationFailed for a token that does not work, and
        TooMany for an address that fails too often.
        """
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            token = self.find(text.strip())
        except AuthenticationFailed:
            require_room_for_stranger(request)
            raise
        token.was_used()
        return token.owner or AnonymousUser(), token

    def find(self, text: str) -> ApiToken:
        """Return the usable token with this text.

        Raises AuthenticationFailed if it is malformed, unknown, revoked, expired or not approved, or its owner is
        closed.
        """
        token_id, secret = id_and_secret_of(text) or ("", "")
        # Every call passes here: joins that decide whether the token is usable would take longer than most calls.
        token = ApiToken.objects.filter(pk=token_id).first() if token_id else None
        known = token and hmac.compare_digest(token.secret_hash, secret_hash(secret))
        if token is None or not known or not token.is_usable:
            raise AuthenticationFailed(
                "The token is unknown, revoked, expired or not approved: check it on the Tokens page."
            )
        return token

    def authenticate_header(self, request: Request) -> str:
        """Return the scheme for WWW-Authenticate, which makes a refusal 401 instead of 403."""
        return "Bearer"


def may_still(request: HttpRequest | Request, project: Project, scope: str) -> bool:
    """Return True if the request's token or session still works and has the scope in the project now."""
    token = getattr(request, "auth", None)
    caller = usable_token(token.pk) if token else signed_in_user(request)
    return caller is not None and scope in caller.scopes_in(project)


def usable_token(pk: str) -> ApiToken | None:
    """Return the token as it is now, or None if it no longer works."""
    token = ApiToken.objects.select_related("account", "created_by").filter(pk=pk).first()
    return token if token and token.is_usable else None


def signed_in_user(request: HttpRequest | Request) -> User | None:
    """Return the user of the request's session as it is now, or None if the session ended."""
    again = HttpRequest()
    again.session = type(request.session)(request.session.session_key)
    user = get_user(again)
    return user if isinstance(user, User) and not is_over(again) else None
