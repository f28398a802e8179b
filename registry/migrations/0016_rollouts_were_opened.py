from typing import Any

from django.db import migrations
from django.db.models import F


def opened_at_once(apps: Any, schema_editor: Any) -> None:
    apps.get_model("registry", "Rollout").objects.update(opened_at=F("created_at"))


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0015_rollout_drafts"),
    ]

    operations = [
        migrations.RunPython(opened_at_once, migrations.RunPython.noop),
    ]
