"""The Celery task that resumes jobs after a lost message or a dead worker."""

from celery import shared_task
from django.apps import apps

from adapterhub.jobs.models import LeasedJob


@shared_task
def sweep() -> None:
    """Reclaim jobs whose lease has expired, and wake a worker for every queued job."""
    for model in apps.get_models():
        if issubclass(model, LeasedJob):
            for pk in model.objects.abandoned().values_list("pk", flat=True):
                model.reclaim(pk)
            for job in model.objects.queued():
                job.wake_worker()
