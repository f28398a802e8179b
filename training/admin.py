"""Read-only admin pages of the application `training`."""

from django.contrib import admin

from adapterhub.api.admin_base import ReadOnlyAdmin
from training import models

for model in (
    models.Dataset,
    models.RankAnalysis,
    models.TrainingRun,
    models.RunMetric,
    models.RunLog,
    models.Compression,
    models.Evaluation,
    models.Device,
):
    admin.site.register(model, ReadOnlyAdmin)
