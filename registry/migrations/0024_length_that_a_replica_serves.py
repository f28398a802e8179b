from django.db import migrations, models


class Migration(migrations.Migration):
    """Keep the longest request that a replica's engine says it serves."""

    dependencies = [("registry", "0023_intake_reports")]

    operations = [
        migrations.AddField(
            model_name="replica",
            name="max_length",
            field=models.PositiveIntegerField(
                editable=False, help_text="Tokens of a request and its answer that its engine serves.", null=True
            ),
        )
    ]
