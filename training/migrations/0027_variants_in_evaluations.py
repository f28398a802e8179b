"""The declared variant of its base model with which an evaluation measures a version, too."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0040_variants"), ("training", "0026_defaults_for_the_release_before")]

    operations = [
        migrations.AddField(
            model_name="evaluation",
            name="variant",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="registry.basemodel",
            ),
        ),
    ]
