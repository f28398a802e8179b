from typing import Any

from django.db import migrations

# What plans name since presets can be taken apart; older ones were all made by `seed` or `uniform`.
SETTINGS = {
    "seed": {"sensitivity": "grad_norm", "divergence": "softmax_mean", "objective": "linear"},
    "uniform": {"sensitivity": "none", "divergence": "none", "objective": "uniform"},
}
SHARED = {"direction": "base_target", "init": "none", "kinds": "all", "power": 1.0}
UNKNOWN: dict[str, Any] = {
    "serving": None,
    "greedy_gap": None,
    "learning_rate": None,
    "probes": [],
    "start_values": None,
}


def complete(apps: Any, schema_editor: Any) -> None:
    RankAnalysis = apps.get_model("training", "RankAnalysis")
    for analysis in RankAnalysis.objects.exclude(plan=None).iterator():
        settings = {**SHARED, **SETTINGS[analysis.preset], "rank_min": analysis.rank_min}
        analysis.plan = {**UNKNOWN, "settings": settings, **analysis.plan}
        analysis.save(update_fields=["plan"])


class Migration(migrations.Migration):
    dependencies = [
        ("training", "0003_analysis_settings"),
    ]

    operations = [
        migrations.RunPython(complete, migrations.RunPython.noop),
    ]
