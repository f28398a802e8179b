"""Shares of a granted cluster: slots, requests a second, tokens a minute."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0032_replicas_come_and_go"),
    ]

    operations = [
        migrations.AddField(
            model_name="clustergrant",
            name="slots",
            field=models.PositiveIntegerField(
                help_text="Adapter slots of a replica that are the project's; null: an equal part.", null=True
            ),
        ),
        migrations.AddField(
            model_name="clustergrant",
            name="requests_per_s",
            field=models.FloatField(help_text="Requests a second that it may send; null: no limit.", null=True),
        ),
        migrations.AddField(
            model_name="clustergrant",
            name="tokens_per_min",
            field=models.PositiveIntegerField(help_text="Tokens a minute; null: no limit.", null=True),
        ),
        migrations.AddConstraint(
            model_name="clustergrant",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("slots", 0), _negated=True),
                    models.Q(("tokens_per_min", 0), _negated=True),
                    models.Q(("requests_per_s__lte", 0), _negated=True),
                ),
                name="shares_are_above_zero",
            ),
        ),
    ]
