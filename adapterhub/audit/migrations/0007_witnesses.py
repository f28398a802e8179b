"""Receipts of witnesses, written once as checkpoints are, and how far a SIEM has taken each chain."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

REFUSE = """
CREATE TRIGGER append_only_rows BEFORE UPDATE OR DELETE ON audit_receipt
    FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER append_only_table BEFORE TRUNCATE ON audit_receipt
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
ALTER TABLE audit_receipt ENABLE ALWAYS TRIGGER append_only_rows;
ALTER TABLE audit_receipt ENABLE ALWAYS TRIGGER append_only_table;
"""
ALLOW = """
DROP TRIGGER append_only_rows ON audit_receipt;
DROP TRIGGER append_only_table ON audit_receipt;
"""
KEY = models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


class Migration(migrations.Migration):
    dependencies = [("audit", "0006_append")]

    operations = [
        migrations.CreateModel(
            name="Receipt",
            fields=[
                ("id", KEY),
                ("witness", models.CharField(max_length=200)),
                ("at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "content",
                    models.BinaryField(
                        help_text="a time-stamp token; empty for a witness that keeps the checkpoint itself"
                    ),
                ),
                (
                    "checkpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="receipts", to="audit.checkpoint"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("checkpoint", "witness"), name="one_receipt_of_a_witness")
                ],
            },
        ),
        migrations.CreateModel(
            name="Follower",
            fields=[
                ("id", KEY),
                ("sequence", models.PositiveBigIntegerField(default=0)),
                (
                    "project",
                    models.OneToOneField(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.project",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("project",), name="one_follower_of_a_chain", nulls_distinct=False)
                ],
            },
        ),
        migrations.RunSQL(REFUSE, ALLOW),
    ]
