import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_service_accounts"),
    ]

    operations = [
        migrations.CreateModel(
            name="FailedAttempts",
            fields=[
                ("key", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("level", models.FloatField(default=0)),
                ("at", models.DateTimeField(db_index=True, default=django.utils.timezone.now)),
                ("blocked_until", models.DateTimeField(default=django.utils.timezone.now)),
            ],
        ),
    ]
