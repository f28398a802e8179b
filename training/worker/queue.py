"""Claiming of the next job: the first in fair order that fits this host. Postgres decides, not the message.

A message says that something is queued, and any worker may get it: the job that it names may not fit that one. The
order is by priority, then by the project that has the fewest running jobs and whose last job began the longest ago,
then by age, so that a project with many jobs does not make another's single job wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from django.conf import settings
from django.db import transaction
from django.db.models import Count, Max, Q

from adapterhub.accounts.models import Project
from adapterhub.jobs.models import LEASED
from training import hardware
from training.models import Device, TrainingRun
from training.models.job import GpuJob, kinds, running
from training.planning.device_needs import bytes_on_each_device

NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Host:
    """The devices of one host: their number, the memory in bytes of the smallest, and if there is a GPU among them.

    A host without a GPU trains with as many CPU processes as a run asks for, in its one memory.
    """

    devices: int
    device_bytes: int
    has_gpu: bool

    @classmethod
    def of(cls, devices: Iterable[hardware.DetectedDevice | Device]) -> Host:
        """Return the host that has these devices."""
        present = list(devices)
        smallest = min((device.memory_bytes for device in present), default=0)
        return cls(len(present), smallest, any(device.kind == Device.Kind.CUDA for device in present))

    def takes(self, job: GpuJob) -> bool:
        """Return True if the host has the devices and the memory that the job needs.

        A need that cannot be estimated counts as met.
        """
        count = job.devices if isinstance(job, TrainingRun) else 1
        if self.has_gpu and count > self.devices:
            return False
        needed = bytes_on_each_device(job, on_gpu=self.has_gpu) if isinstance(job, TrainingRun) else None
        return needed is None or needed * (1 if self.has_gpu else count) <= self.device_bytes


def claim() -> GpuJob | None:
    """Claim the next job that fits this host and return it; None if no queued job fits it."""
    here, fleet = Host.of(hardware.detect(settings.WORK_DIR)), hosts()
    for job in in_fair_order():
        if may_begin(job, here, fleet) and (claimed := claim_within_limit(job)):
            return claimed
    return None


def hosts() -> list[Host]:
    """Return a Host for each host whose worker reported within REPORTED_WITHIN, with the devices of that host."""
    devices: dict[str, list[Device]] = {}
    for device in Device.objects.alive():
        devices.setdefault(device.host, []).append(device)
    return [Host.of(present) for present in devices.values()]


def may_begin(job: GpuJob, here: Host, fleet: list[Host]) -> bool:
    """Return True if the job may run here: it fits this host, or it fits no host and this one has enough devices.

    The second is a job that was queued although no host is expected to fit it. A run of more devices than any host has
    waits for such a host.
    """
    if here.takes(job):
        return True
    has_devices = not here.has_gpu or not isinstance(job, TrainingRun) or job.devices <= here.devices
    return has_devices and not any(host.takes(job) for host in fleet)


def in_fair_order() -> list[GpuJob]:
    """Return the queued jobs of all kinds, the next first, without those of projects at their limit of running jobs.

    They are ordered by priority, then by the project with the fewest running jobs and the earliest last start, then by
    age.
    """
    busy, last = shares()
    full = [project for project, count in busy.items() if count >= settings.PROJECT_RUNNING > 0]
    waiting = [kind.objects.queued().exclude(project__in=full) for kind in kinds()]
    jobs = [job for queued in waiting for job in queued.select_related("project", "base_model")]
    return sorted(
        jobs,
        key=lambda job: (
            -job.priority,
            busy.get(job.project_id, 0),
            last.get(job.project_id, NEVER),
            job.created_at,
        ),
    )


def shares() -> tuple[dict[int, int], dict[int, datetime]]:
    """Return the number of running jobs by project id, and by project id the time at which its last job began."""
    busy: dict[int, int] = {}
    last: dict[int, datetime] = {}
    for kind in kinds():
        began_once = kind.objects.filter(started_at__isnull=False).order_by().values_list("project")
        rows = began_once.annotate(active=Count("pk", filter=Q(status__in=LEASED)), latest=Max("started_at"))
        for project, count, began in rows:
            busy[project] = busy.get(project, 0) + count
            last[project] = max(last.get(project, NEVER), began)
    return busy, last


def claim_within_limit(job: GpuJob) -> GpuJob | None:
    """Claim and return the job; None if another worker has it or its project is at its limit of running jobs.

    The project's row is locked while its running jobs are counted.
    """
    if not settings.PROJECT_RUNNING:
        return type(job).claim(job.pk)
    with transaction.atomic():
        Project.objects.select_for_update().get(pk=job.project_id)
        if running(job.project) >= settings.PROJECT_RUNNING:
            return None
        return type(job).claim(job.pk)
