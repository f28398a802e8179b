"""When a cluster was last reconciled, and the signs of life of a base model's check."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0026_signed_tokens"),
    ]

    operations = [
        migrations.AddField(
            model_name="cluster",
            name="reconciled_at",
            field=models.DateTimeField(editable=False, help_text="End of its last complete round.", null=True),
        ),
        migrations.AddField(
            model_name="basemodel",
            name="checked_at",
            field=models.DateTimeField(editable=False, help_text="The last sign of life of its check.", null=True),
        ),
        migrations.AddField(
            model_name="basemodel",
            name="check_attempt",
            field=models.PositiveIntegerField(default=0, editable=False),
        ),
    ]
