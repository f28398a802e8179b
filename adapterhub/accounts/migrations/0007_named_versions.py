from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0006_failed_attempts"),
    ]

    operations = [
        migrations.AddField(
            model_name="project",
            name="named_versions",
            field=models.CharField(
                choices=[("approved", "approved ones only"), ("any", "any")],
                default="approved",
                help_text="Versions that callers may name, of adapters with a protected alias.",
                max_length=10,
            ),
        ),
    ]
