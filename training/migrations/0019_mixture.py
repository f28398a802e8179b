from django.db import migrations, models


class Migration(migrations.Migration):
    """Let a run mix in other datasets, each with its weight."""

    dependencies = [("training", "0018_scheduler_of_earlier_runs")]

    operations = [
        migrations.AddField(
            model_name="trainingrun",
            name="mixture",
            field=models.JSONField(
                blank=True, default=list, help_text="Datasets beside the first, whose weight is 1: dataset, weight."
            ),
        )
    ]
