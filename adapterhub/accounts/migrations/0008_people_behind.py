"""Owners of service accounts, and the form of mail addresses by which accounts of one person are recognised."""

from typing import Any

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

# The form has no case, no width, no invisible characters, and nothing behind a plus.
MAIL_KEY = r"""
CREATE FUNCTION accounts_mail_key(address text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN plain ~ '^[^@]+@[^@]+$' THEN plain ELSE '' END FROM (
        SELECT regexp_replace(rtrim(lower(normalize(regexp_replace(
            COALESCE(address, ''),
            '[\s\u0001-\u0020\u00a0\u00ad\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]', '', 'g'
        ), NFKC)), '.'), '\+[^@]*@', '@') AS plain
    ) AS cleaned
$$;
"""


def owners_from_the_trail(apps: Any, schema_editor: Any) -> None:
    """Make those who created the service accounts their owners, as the audit trail names them."""
    events = apps.get_model("audit", "AuditEvent").objects.filter(tag="user:service_account_created")
    users = apps.get_model("accounts", "User").objects
    for account, actor in events.exclude(actor=None).values_list("object_id", "actor"):
        if users.filter(pk=actor, is_service=False).exists():
            users.filter(pk=account, is_service=True, owner=None).update(owner=actor)


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0007_named_versions"),
        ("audit", "0006_append"),
    ]

    operations = [
        migrations.AddField(
            model_name="user",
            name="owner",
            field=models.ForeignKey(
                blank=True,
                editable=False,
                help_text="The person who answers for a service account.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="owned_accounts",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddConstraint(
            model_name="user",
            constraint=models.CheckConstraint(
                condition=models.Q(("owner", None), ("is_service", True), _connector="OR"),
                name="only_a_service_account_has_an_owner",
            ),
        ),
        migrations.RunSQL(MAIL_KEY, "DROP FUNCTION accounts_mail_key(text)"),
        migrations.RunPython(owners_from_the_trail, migrations.RunPython.noop),
    ]
