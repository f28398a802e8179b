"""A password hasher for tests: Django's own work, done once a password and process."""

from __future__ import annotations

from functools import cache

from django.contrib.auth.hashers import PBKDF2PasswordHasher

SALT = "one-salt-for-all-tests"


class HashedOnce(PBKDF2PasswordHasher):
    """PBKDF2 with a constant salt, so that a password's hash, a third of a second, can be kept."""

    def salt(self) -> str:
        return SALT

    @staticmethod
    @cache
    def _encoded(password: str, salt: str, iterations: int) -> str:
        return PBKDF2PasswordHasher().encode(password, salt, iterations)

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        return self._encoded(password, salt, iterations or self.iterations)
