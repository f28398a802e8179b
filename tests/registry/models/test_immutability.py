"""The database refuses what the code would never do: through the ORM, in bulk and in SQL, as the application role."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.urls import reverse

from registry.models import AdapterVersion, Alias, VersionStatus


def refused(statement: str, *values: object) -> None:
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)


def test_a_version_keeps_its_digest(version: AdapterVersion) -> None:
    with pytest.raises(DatabaseError), transaction.atomic():
        AdapterVersion.objects.update(digest="0" * 64)
    refused("UPDATE registry_adapterversion SET metrics = '{}'::jsonb || '{\"loss\": 0}' WHERE id = %s", version.pk)
    version.digest = "f" * 64
    with pytest.raises(DatabaseError), transaction.atomic():
        version.save()


def test_a_version_keeps_its_digest_in_bulk(version: AdapterVersion) -> None:
    version.digest = "f" * 64
    with pytest.raises(DatabaseError), transaction.atomic():
        AdapterVersion.objects.bulk_update([version], ["digest"])
    with pytest.raises(DatabaseError), transaction.atomic():
        AdapterVersion.objects.bulk_create(
            [version], update_conflicts=True, unique_fields=["id"], update_fields=["digest"]
        )


@pytest.mark.parametrize("verb", ["change", "delete"])
def test_the_admin_offers_no_way_either(version: AdapterVersion, admin_client: Client, verb: str) -> None:
    page = admin_client.post(reverse(f"admin:registry_adapterversion_{verb}", args=[version.pk]), {"post": "yes"})
    assert page.status_code == 403
    assert AdapterVersion.objects.get().digest == version.digest


def test_a_version_is_not_deleted(version: AdapterVersion) -> None:
    with pytest.raises(DatabaseError), transaction.atomic():
        version.delete()
    with pytest.raises(DatabaseError), transaction.atomic():
        AdapterVersion.objects.all().delete()
    refused("DELETE FROM registry_adapterversion WHERE id = %s", version.pk)
    refused("TRUNCATE registry_adapterversion CASCADE")


def test_an_archived_version_stays_archived(version: AdapterVersion, alice) -> None:
    version.archive(reason="old", by=alice.as_actor())
    with pytest.raises(DatabaseError), transaction.atomic():
        AdapterVersion.objects.update(status=VersionStatus.READY)


def test_history_of_an_alias_is_kept(alias: Alias) -> None:
    refused("UPDATE registry_aliasmove SET reason = 'nothing happened'")
    refused("DELETE FROM registry_aliasmove")


def test_the_audit_trail_is_append_only(alias: Alias) -> None:
    refused("UPDATE audit_auditevent SET reason = 'nothing happened'")
    refused("DELETE FROM audit_auditevent")
    refused("TRUNCATE audit_auditevent")
    refused("ALTER TABLE audit_auditevent DISABLE TRIGGER append_only_rows")
    refused("SET session_replication_role = replica")
