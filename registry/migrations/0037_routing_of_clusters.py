"""The policy by which routers choose among the replicas of a cluster."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0036_responses_by_month"),
    ]

    operations = [
        migrations.AddField(
            model_name="cluster",
            name="routing",
            field=models.CharField(
                choices=[("least_loaded", "Least loaded"), ("prefix_affinity", "Prefix affinity")],
                db_default="least_loaded",
                default="least_loaded",
                help_text="How routers choose among the replicas that hold a version.",
                max_length=20,
            ),
        ),
    ]
