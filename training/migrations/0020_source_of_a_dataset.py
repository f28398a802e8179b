from django.db import migrations, models


class Migration(migrations.Migration):
    """Keep where a dataset of a bucket or a hub lies, and the bytes that were read there."""

    dependencies = [("training", "0019_mixture")]

    operations = [
        migrations.AddField(
            model_name="dataset",
            name="source",
            field=models.JSONField(
                default=dict,
                editable=False,
                help_text="Where a dataset of a bucket or a hub lies, and the bytes read there.",
            ),
        )
    ]
