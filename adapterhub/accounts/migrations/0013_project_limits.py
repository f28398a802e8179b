"""Limits of a project at the routers: requests a second, tokens a minute."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0012_defaults_for_the_release_before"),
    ]

    operations = [
        migrations.AddField(
            model_name="project",
            name="requests_per_s",
            field=models.FloatField(blank=True, help_text="Requests a second to routers; null: no limit.", null=True),
        ),
        migrations.AddField(
            model_name="project",
            name="tokens_per_min",
            field=models.PositiveIntegerField(
                blank=True, help_text="Tokens of questions and answers a minute; null: no limit.", null=True
            ),
        ),
        migrations.AddConstraint(
            model_name="project",
            constraint=models.CheckConstraint(
                condition=models.Q(("tokens_per_min", 0), _negated=True)
                & models.Q(("requests_per_s__lte", 0), _negated=True),
                name="project_limits_are_above_zero",
            ),
        ),
    ]
