"""Comparisons of what engines compute with a version with PEFT."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0029_unservable_versions")]

    operations = [
        migrations.CreateModel(
            name="ServedComparison",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("engine_version", models.CharField(max_length=60)),
                ("replica", models.CharField(max_length=300)),
                (
                    "verdict",
                    models.CharField(
                        choices=[
                            ("matches", "Matches"),
                            ("differs", "Differs"),
                            ("no_effect", "No Effect"),
                            ("not_compared", "Not Compared"),
                        ],
                        max_length=20,
                    ),
                ),
                ("reason", models.TextField(blank=True)),
                ("tokens", models.PositiveIntegerField(default=0)),
                ("effect", models.FloatField(null=True)),
                ("difference", models.FloatField(null=True)),
                ("details", models.JSONField(default=dict)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="served_comparisons",
                        to="registry.adapterversion",
                    ),
                ),
            ],
            options={
                "ordering": ["-created_at"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("version", "engine_version"), name="one_comparison_per_engine_release"
                    )
                ],
            },
        )
    ]
