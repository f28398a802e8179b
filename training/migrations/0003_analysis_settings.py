from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("training", "0002_six_methods"),
    ]

    operations = [
        migrations.AddField(
            model_name="rankanalysis",
            name="settings",
            field=models.JSONField(default=dict, help_text="What was chosen instead of the preset's parts."),
        ),
        migrations.AddField(
            model_name="trainingrun",
            name="budget",
            field=models.JSONField(blank=True, help_text="Instead of the analysis' own.", null=True),
        ),
        migrations.AddField(
            model_name="trainingrun",
            name="takes_start_values",
            field=models.BooleanField(default=False),
        ),
        migrations.AlterField(
            model_name="rankanalysis",
            name="preset",
            field=models.CharField(
                choices=[("default", "Default"), ("seed", "Seed"), ("uniform", "Uniform")],
                default="default",
                max_length=20,
            ),
        ),
        migrations.AlterField(
            model_name="rankanalysis",
            name="rank_min",
            field=models.PositiveIntegerField(),
        ),
    ]
