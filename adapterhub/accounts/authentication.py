"""Authentication of REST requests by bearer token."""

from __future__ import annotations

import hmac

from django.contrib.auth.models import AnonymousUser
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from adapterhub.accounts.models import ApiToken, User
from adapterhub.api.throttling import require_room_for_stranger
from adapterhub.core.tokens import id_and_secret_of, secret_hash


class TokenAuthentication(BaseAuthentication):
    """Authentication by `Authorization: Bearer ah_<id>_<secret>`; the token is set as `request.auth`."""

    def authenticate(self, request: Request) -> tuple[User | AnonymousUser, ApiToken] | None:
        """Return the token's user and the token; None without a bearer token."""
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            token = self.find(text.strip())
        except AuthenticationFailed:
            require_room_for_stranger(request)
            raise
        token.was_used()
        return token.account or token.created_by or AnonymousUser(), token

    def find(self, text: str) -> ApiToken:
        """Return the usable token with this text. Raises AuthenticationFailed."""
        token_id, secret = id_and_secret_of(text) or ("", "")
        # Every call passes here: joins that decide whether the token is usable would take longer than most calls.
        token = ApiToken.objects.filter(pk=token_id).first() if token_id else None
        known = token and hmac.compare_digest(token.secret_hash, secret_hash(secret))
        if token is None or not known or not token.is_usable:
            raise AuthenticationFailed(
                "The token is unknown, revoked, expired or not approved: look at the page of tokens."
            )
        return token

    def authenticate_header(self, request: Request) -> str:
        """Return the scheme for WWW-Authenticate, so that a refusal is 401 and not 403."""
        return "Bearer"
