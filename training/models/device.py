"""Devices of the GPU workers, as each worker last reported them, since the web process has no torch and sees none."""

from __future__ import annotations

from datetime import timedelta

from django.db import models
from django.db.models.functions import Now

from training.hardware import DetectedDevice

REPORTED_WITHIN = timedelta(minutes=5)


class DeviceQuerySet(models.QuerySet["Device"]):
    """Devices, selected by when a worker last reported them."""

    def alive(self) -> DeviceQuerySet:
        """Return devices whose worker reported within REPORTED_WITHIN, by the database's clock."""
        return self.filter(seen_at__gt=Now() - REPORTED_WITHIN)


class Device(models.Model):
    """A GPU of a worker's host, or the host itself if it has none; sizes in bytes."""

    class Kind(models.TextChoices):
        CUDA = "cuda", "GPU"
        CPU = "cpu", "CPU"

    host = models.CharField(max_length=200)
    place = models.PositiveIntegerField(help_text="Its number on the host.")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    name = models.CharField(max_length=200)
    memory_bytes = models.PositiveBigIntegerField()
    free_bytes = models.PositiveBigIntegerField()
    disk_free_bytes = models.PositiveBigIntegerField(help_text="Free where checkpoints lie.")
    seen_at = models.DateTimeField()

    objects = DeviceQuerySet.as_manager()

    class Meta:
        ordering = ["host", "place"]
        constraints = [models.UniqueConstraint(fields=["host", "place"], name="one_row_per_device")]

    def __str__(self) -> str:
        return f"{self.name} of {self.host}"

    @classmethod
    def report(cls, host: str, devices: list[DetectedDevice]) -> None:
        """Store the devices that a worker sees on its host; delete those that it no longer sees."""
        for device in devices:
            cls.objects.update_or_create(
                host=host, place=device.place, defaults={**device.as_fields(), "seen_at": Now()}
            )
        cls.objects.filter(host=host, place__gte=len(devices)).delete()
