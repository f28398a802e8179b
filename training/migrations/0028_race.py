"""Add the preset race to the choices of an analysis; the column stays as it is."""

from django.db import migrations, models

PRESETS = [("default", "Default"), ("seed", "Seed"), ("uniform", "Uniform"), ("race", "Race")]


class Migration(migrations.Migration):
    dependencies = [("training", "0027_variants_in_evaluations")]

    operations = [
        migrations.AlterField(
            model_name="rankanalysis",
            name="preset",
            field=models.CharField(choices=PRESETS, default="default", max_length=20),
        ),
    ]
