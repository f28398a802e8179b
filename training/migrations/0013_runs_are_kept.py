"""Runs, too, have a retention class and a legal hold."""

from django.db import migrations, models

CLASSES = [
    ("lifecycle", "10 years, as the documents of a lifecycle"),
    ("serving", "6 months, as the logs of serving"),
    ("none", "until it is erased"),
]


class Migration(migrations.Migration):
    dependencies = [("training", "0012_checkpoint_answers")]

    operations = [
        migrations.AddField("trainingrun", "hold_reason", models.TextField(blank=True, default="")),
        migrations.AddField(
            "trainingrun", "retention", models.CharField(choices=CLASSES, default="lifecycle", max_length=20)
        ),
    ]
