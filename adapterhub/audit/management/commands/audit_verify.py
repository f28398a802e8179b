"""`manage.py audit_verify`: walk every chain; exit 1 names the first event that does not hold."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from adapterhub.accounts.models import Project
from adapterhub.audit.models import verify


class Command(BaseCommand):
    help = "Verify the hash chain of every project."

    def handle(self, **_: Any) -> None:
        broken = 0
        for project in [None, *Project.objects.all()]:
            count, faults = verify(project)
            name = project.slug if project else "(installation)"
            for fault in faults:
                broken += 1
                self.stdout.write(f"{name}: event {fault.sequence} {fault.kind}")
            if not faults:
                self.stdout.write(f"{name}: {count} events intact")
        if broken:
            raise CommandError(f"{broken} events do not hold: compare with a backup or an export made earlier.")
