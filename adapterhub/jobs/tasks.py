"""The Celery task that resumes jobs after a lost message or a dead worker."""

from celery import shared_task
from django.apps import apps

from adapterhub.jobs.models import LeasedJob
from adapterhub.workspace import sweep_work_folder


@shared_task
def sweep() -> None:
    """Reclaim jobs whose lease has expired, wake a worker for each queued job, and delete files of killed processes."""
    sweep_work_folder()
    for model in apps.get_models():
        if issubclass(model, LeasedJob):
            for pk in model.objects.abandoned().values_list("pk", flat=True):
                model.reclaim(pk)
            for job in model.objects.queued():
                job.wake_worker()
