from typing import Any

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


def grant_what_is_shared(apps: Any, schema_editor: Any) -> None:
    """Grant each cluster to the other projects that it serves so far, so that they go on being served.

    These are the projects with an alias on it, and those with a version of its base model and no cluster of their own.
    """
    Cluster, Grant = apps.get_model("registry", "Cluster"), apps.get_model("registry", "ClusterGrant")
    Alias, Version = apps.get_model("registry", "Alias"), apps.get_model("registry", "AdapterVersion")
    Project = apps.get_model("accounts", "Project")
    for cluster in Cluster.objects.all():
        own = Cluster.objects.filter(base_model=cluster.base_model_id).values("project")
        with_alias = Alias.objects.filter(cluster=cluster).values("project")
        with_version = Version.objects.filter(adapter__base_model=cluster.base_model_id).values("adapter__project")
        served = Project.objects.filter(pk__in=with_alias) | Project.objects.filter(pk__in=with_version).exclude(
            pk__in=own
        )
        for project in served.exclude(pk=cluster.project_id).distinct():
            Grant.objects.create(cluster=cluster, offered_to=project.slug, project=project, granted_by="migration")


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_service_accounts"),
        ("registry", "0020_longest_token"),
    ]

    operations = [
        migrations.CreateModel(
            name="ClusterGrant",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("offered_to", models.SlugField(help_text="Slug of the project, whether it exists or not.")),
                ("granted_by", models.CharField(max_length=200)),
                ("granted_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("withdrawn_at", models.DateTimeField(editable=False, null=True)),
                (
                    "cluster",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="grants", to="registry.cluster"
                    ),
                ),
                (
                    "project",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="grants",
                        to="accounts.project",
                    ),
                ),
            ],
            options={"ordering": ["-granted_at", "-id"]},
        ),
        migrations.AddConstraint(
            model_name="clustergrant",
            constraint=models.UniqueConstraint(
                condition=models.Q(("withdrawn_at", None)),
                fields=("cluster", "offered_to"),
                name="one_standing_grant_per_project",
            ),
        ),
        migrations.RunPython(grant_what_is_shared, migrations.RunPython.noop),
    ]
