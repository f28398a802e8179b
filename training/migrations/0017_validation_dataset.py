import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0016_escaped_control_tokens")]

    operations = [
        migrations.AddField(
            "trainingrun",
            "validation_dataset",
            models.ForeignKey(
                blank=True,
                help_text="Else the dataset's held-out rows.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="training.dataset",
            ),
        ),
    ]
