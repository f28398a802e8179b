"""Limits of an API token at the routers: requests a second and tokens a minute."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0010_setup_link"),
    ]

    operations = [
        migrations.AddField(
            model_name="apitoken",
            name="requests_per_s",
            field=models.FloatField(blank=True, help_text="Requests a second to routers; null: no limit.", null=True),
        ),
        migrations.AddField(
            model_name="apitoken",
            name="tokens_per_min",
            field=models.PositiveIntegerField(
                blank=True, help_text="Tokens of questions and answers a minute; null: no limit.", null=True
            ),
        ),
        migrations.AddConstraint(
            model_name="apitoken",
            constraint=models.CheckConstraint(
                condition=models.Q(("tokens_per_min", 0), _negated=True)
                & models.Q(("requests_per_s__lte", 0), _negated=True),
                name="token_limits_are_above_zero",
            ),
        ),
    ]
