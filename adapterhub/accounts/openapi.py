"""The OpenAPI description of bearer tokens."""

from drf_spectacular.extensions import OpenApiAuthenticationExtension


class BearerTokens(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # it registers subclasses
    """The security scheme of bearer tokens; drf-spectacular registers it when this module is imported."""

    target_class = "adapterhub.accounts.authentication.TokenAuthentication"
    name = "bearerToken"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        """Return the OpenAPI security scheme of bearer tokens."""
        return {"type": "http", "scheme": "bearer", "bearerFormat": "ah_<id>_<secret>"}
