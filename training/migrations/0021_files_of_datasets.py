import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0020_source_of_a_dataset")]

    operations = [
        migrations.AddField(
            "dataset",
            "file_digest",
            models.CharField(
                blank=True, db_index=True, default="", help_text="sha256 of the file as it was sent", max_length=64
            ),
        ),
        migrations.AddField(
            "dataset",
            "same_as",
            models.ForeignKey(
                editable=False,
                help_text="Who has the same content.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="training.dataset",
            ),
        ),
    ]
