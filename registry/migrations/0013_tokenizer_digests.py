"""What a version's prompts are made with. Rows from before do not say it, and are never rewritten."""

from typing import Any

from django.db import migrations, models

DIGEST: dict[str, Any] = {"blank": True, "default": "", "max_length": 64}


class Migration(migrations.Migration):
    dependencies = [("registry", "0012_blind_tests")]

    operations = [
        migrations.AddField("basemodel", "tokenizer_digest", models.CharField(**DIGEST, editable=False)),
        migrations.AddField("basemodel", "template_digest", models.CharField(**DIGEST, editable=False)),
        migrations.AddField("adapterversion", "tokenizer_digest", models.CharField(**DIGEST)),
        migrations.AddField("adapterversion", "template_digest", models.CharField(**DIGEST)),
    ]
