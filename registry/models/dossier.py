"""Frozen dossiers: the records about a version at one time, signed and never changed."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785
from django.db import models, transaction
from django.utils.timezone import now

from adapterhub.accounts.models import Project, User
from adapterhub.audit.installation_key import signing_key
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from registry.models.adapter import AdapterVersion
from registry.version_signature import sign


class Dossier(models.Model):
    """A version's dossier as of `created_at`; a database trigger refuses changes to the row."""

    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="dossiers")
    content = models.JSONField()
    digest = models.CharField(max_length=64)
    signature = models.TextField()
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"dossier of {self.version}, {self.digest[:12]}"

    @property
    def project(self) -> Project:
        """Return the version's project."""
        return self.version.project

    @classmethod
    def freeze(cls, version: AdapterVersion, content: dict[str, Any], *, by: Actor) -> Dossier:
        """Store the content as a dossier of the version, sign and record it, and return the dossier.

        The digest is the sha256 of the content's canonical JSON; it is signed together with the version's served name.
        """
        digest = hashlib.sha256(rfc8785.dumps(content)).hexdigest()
        with transaction.atomic():
            signature = sign({"dossier_of": version.served_name, "digest": digest}, signing_key())
            dossier = cls.objects.create(
                version=version, content=content, digest=digest, signature=signature, created_by=by.user
            )
            AuditEvent.record(Tag.DOSSIER_FROZEN, version, by=by, project=version.project, after={"dossier": digest})
        return dossier
