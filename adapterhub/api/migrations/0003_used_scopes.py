from django.db import migrations, models


class Migration(migrations.Migration):
    """Answers that were kept without what their caller needed are forgotten: they may be repeated to nobody."""

    dependencies = [
        ("api", "0002_sealed_answers"),
    ]

    operations = [
        migrations.RunSQL("DELETE FROM api_idempotentrequest", migrations.RunSQL.noop),
        migrations.AddField(
            model_name="idempotentrequest",
            name="used_scopes",
            field=models.JSONField(default=list, help_text="What the caller needed: [project, scope] pairs."),
        ),
    ]
