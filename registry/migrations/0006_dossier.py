import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

PROTECT = """
CREATE TRIGGER kept_rows BEFORE UPDATE OR DELETE ON registry_dossier
    FOR EACH ROW EXECUTE FUNCTION adapterhub_refuse();
CREATE TRIGGER kept_table BEFORE TRUNCATE ON registry_dossier
    FOR EACH STATEMENT EXECUTE FUNCTION adapterhub_refuse();
ALTER TABLE registry_dossier ENABLE ALWAYS TRIGGER kept_rows;
ALTER TABLE registry_dossier ENABLE ALWAYS TRIGGER kept_table;
"""
RELEASE = """
DROP TRIGGER kept_table ON registry_dossier;
DROP TRIGGER kept_rows ON registry_dossier;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0005_signed_versions"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Dossier",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("content", models.JSONField()),
                ("digest", models.CharField(max_length=64)),
                ("signature", models.TextField()),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "created_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="dossiers",
                        to="registry.adapterversion",
                    ),
                ),
            ],
            options={"ordering": ["-id"]},
        ),
        migrations.RunSQL(PROTECT, RELEASE),
    ]
