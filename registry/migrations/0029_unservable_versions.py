"""Versions that engines cannot serve are kept, to be downloaded and reduced."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0028_rollout_decisions")]

    operations = [
        migrations.AlterField(
            model_name="adapterversion",
            name="status",
            field=models.CharField(
                choices=[
                    ("checking", "Checking"),
                    ("ready", "Ready"),
                    ("rejected", "Rejected"),
                    ("unservable", "Unservable"),
                    ("archived", "Archived"),
                ],
                default="ready",
                max_length=20,
            ),
        )
    ]
