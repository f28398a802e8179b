from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0024_length_that_a_replica_serves")]

    operations = [
        migrations.AddField(
            "rollout",
            "status_reason",
            models.TextField(blank=True, default="", editable=False, help_text="Why it is in this status."),
        ),
    ]
