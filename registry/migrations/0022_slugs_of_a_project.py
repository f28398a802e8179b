import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0021_cluster_grants"),
    ]

    operations = [
        migrations.AddField(
            "replica",
            "endpoints",
            django.contrib.postgres.fields.ArrayField(
                models.CharField(max_length=300), default=list, editable=False, size=None
            ),
        ),
        migrations.AlterField("adapter", "slug", models.SlugField()),
        migrations.AlterField("cluster", "slug", models.SlugField()),
        migrations.AlterField("alias", "name", models.SlugField()),
        migrations.AlterField("adapterversion", "served_name", models.CharField(max_length=160, unique=True)),
        migrations.AddConstraint(
            "adapter", models.UniqueConstraint(fields=("project", "slug"), name="one_adapter_per_slug")
        ),
        migrations.AddConstraint(
            "cluster", models.UniqueConstraint(fields=("project", "slug"), name="one_cluster_per_slug")
        ),
        migrations.AddConstraint(
            "alias", models.UniqueConstraint(fields=("project", "name"), name="one_alias_per_name")
        ),
    ]
