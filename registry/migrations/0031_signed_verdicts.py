"""A signature keeps the verdicts of the rollout as they were when it was given."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0030_served_comparisons")]

    operations = [
        migrations.AddField(
            model_name="signature",
            name="verdicts",
            field=models.JSONField(
                editable=False,
                help_text="The rollout's analysis when this was signed; null for a policy and before it is opened.",
                null=True,
            ),
        ),
    ]
