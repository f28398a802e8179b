"""Requests and tokens by project, alias, version and day."""

import django.db.models.deletion
from django.db import migrations, models

# What was answered before: its cold loads were not reported.
BEFORE = """
INSERT INTO registry_usageday
    (project_id, alias_name, version_id, day, requests, failures, cold_loads, prompt_tokens, completion_tokens)
SELECT project_id, alias_name, version_id, (at AT TIME ZONE 'UTC')::date, count(*),
    count(*) FILTER (WHERE status >= 400), 0, sum(prompt_tokens), sum(completion_tokens)
FROM registry_response GROUP BY 1, 2, 3, 4
"""


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0033_shares_of_grants"),
    ]

    operations = [
        migrations.CreateModel(
            name="UsageDay",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("alias_name", models.CharField(blank=True, max_length=50)),
                ("day", models.DateField()),
                ("requests", models.PositiveBigIntegerField(default=0)),
                (
                    "failures",
                    models.PositiveBigIntegerField(
                        default=0, help_text="Of the requests, those that ended with an error."
                    ),
                ),
                (
                    "cold_loads",
                    models.PositiveBigIntegerField(default=0, help_text="Requests that waited for a load."),
                ),
                ("prompt_tokens", models.PositiveBigIntegerField(default=0)),
                ("completion_tokens", models.PositiveBigIntegerField(default=0)),
                (
                    "project",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.project"
                    ),
                ),
                (
                    "version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="registry.adapterversion"
                    ),
                ),
            ],
            options={
                "ordering": ["-day", "alias_name", "version"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("project", "alias_name", "version", "day"), name="one_row_of_usage_a_day"
                    )
                ],
            },
        ),
        migrations.RunSQL(BEFORE, migrations.RunSQL.noop),
    ]
