"""How the OpenAPI schema describes bearer tokens."""

from drf_spectacular.extensions import OpenApiAuthenticationExtension


class BearerTokens(OpenApiAuthenticationExtension):
    """Found by its import: drf-spectacular keeps a register of such classes."""

    target_class = "adapterhub.accounts.authentication.TokenAuthentication"
    name = "bearerToken"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "ah_<id>_<secret>"}
