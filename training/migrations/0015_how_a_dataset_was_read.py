from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0014_mirrored_and_traced")]

    operations = [
        migrations.AddField(
            "dataset",
            "encoding",
            models.CharField(blank=True, default="", help_text="Empty: UTF-8, or the file's mark.", max_length=20),
        ),
        migrations.AddField(
            "dataset",
            "read_as",
            models.TextField(blank=True, default="", help_text="The recognised form of the rows."),
        ),
    ]
