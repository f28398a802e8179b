from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0015_how_a_dataset_was_read")]

    operations = [
        migrations.AddField(
            "dataset",
            "escape",
            models.BooleanField(default=False, help_text="Control tokens in prompts get a space."),
        ),
    ]
