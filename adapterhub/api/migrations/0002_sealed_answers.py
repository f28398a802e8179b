from django.db import migrations, models


class Migration(migrations.Migration):
    """Answers that were kept readable are forgotten: they may hold secrets that were shown once."""

    dependencies = [
        ("api", "0001_initial"),
    ]

    operations = [
        migrations.RunSQL("DELETE FROM api_idempotentrequest", migrations.RunSQL.noop),
        migrations.RemoveField(model_name="idempotentrequest", name="body"),
        migrations.AddField(
            model_name="idempotentrequest",
            name="sealed",
            field=models.BinaryField(
                help_text="The answer's bytes: it may hold a secret that is shown once.", null=True
            ),
        ),
    ]
