"""Replicas can be drained, tell what another hand loaded, and engines may ask for an API key."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

OWN = """
UPDATE registry_replica
SET pushed = ARRAY(SELECT left(name, 300) FROM jsonb_object_keys(loaded) AS name ORDER BY name)
WHERE loaded <> '{}'
"""


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0031_signed_verdicts"),
    ]

    operations = [
        migrations.AddField(
            model_name="cluster",
            name="sealed_key",
            field=models.BinaryField(default=b"", help_text="Its engines' API key, encrypted."),
        ),
        migrations.AddField(
            model_name="replica",
            name="draining_since",
            field=models.DateTimeField(editable=False, help_text="It gets no requests and loads nothing.", null=True),
        ),
        migrations.AddField(
            model_name="replica",
            name="twin_of",
            field=models.ForeignKey(
                editable=False,
                help_text="The engine's older replica.",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="registry.replica",
            ),
        ),
        migrations.AddField(
            model_name="replica",
            name="pushed",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=300),
                default=list,
                editable=False,
                help_text="Names that we began to load.",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="replica",
            name="foreign",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=300),
                default=list,
                editable=False,
                help_text="Names that others loaded.",
                size=None,
            ),
        ),
        migrations.RunSQL(OWN, migrations.RunSQL.noop),
    ]
