from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0019_signer"),
    ]

    operations = [
        migrations.AddField(
            model_name="basemodel",
            name="longest_token",
            field=models.PositiveIntegerField(default=0, editable=False, help_text="characters; 0: not known"),
        ),
    ]
