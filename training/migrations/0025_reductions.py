"""Compressions to a highest rank may store the base model with the adapter merged into it."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0024_lm_eval_task")]

    operations = [
        migrations.AddField(
            model_name="compression",
            name="keeps_merged",
            field=models.BooleanField(default=False),
        )
    ]
