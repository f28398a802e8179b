"""Decisions on rollouts with the verdicts on which they were made; the rows are written once."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

PROTECT = """
CREATE TRIGGER kept_rows BEFORE UPDATE OR DELETE ON registry_rolloutdecision
    FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_table BEFORE TRUNCATE ON registry_rolloutdecision
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
ALTER TABLE registry_rolloutdecision ENABLE ALWAYS TRIGGER kept_rows;
ALTER TABLE registry_rolloutdecision ENABLE ALWAYS TRIGGER kept_table;
"""
RELEASE = """
DROP TRIGGER kept_table ON registry_rolloutdecision;
DROP TRIGGER kept_rows ON registry_rolloutdecision;
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0027_rounds_and_checks")]

    operations = [
        migrations.CreateModel(
            name="RolloutDecision",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "outcome",
                    models.CharField(
                        choices=[
                            ("stepped", "next step"),
                            ("awaits_approval", "waits for an approval"),
                            ("paused", "Paused"),
                            ("resumed", "Resumed"),
                            ("promoted", "Promoted"),
                            ("rolled_back", "rolled back"),
                            ("failed", "Failed"),
                        ],
                        max_length=20,
                    ),
                ),
                ("actor_name", models.CharField(max_length=200)),
                ("reason", models.TextField(blank=True)),
                (
                    "verdicts",
                    models.JSONField(
                        help_text="The analysis as the decision was made on it, with the time of its numbers."
                    ),
                ),
                (
                    "rollout",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="decisions",
                        to="registry.rollout",
                    ),
                ),
            ],
            options={"ordering": ["at", "id"]},
        ),
        migrations.RunSQL(PROTECT, RELEASE),
    ]
