"""`manage.py train run.yaml --user NAME`: queue the run that the file describes, in the format of the REST body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.accounts.models import Project, User
from adapterhub.api.unknown_fields import require_known
from adapterhub.core.errors import DomainError, Invalid
from adapterhub.core.tenancy import ROLE_SCOPES, Scope
from adapterhub.core.yaml_loader import loaded
from training.api.serializers import NewTrainingRunSerializer
from training.runs import specification
from training.runs.launch import launch_run


class Command(BaseCommand):
    """Queue the training run that a file describes."""

    help = "Queue the training run that a YAML or JSON file describes; prints its id."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the file and the user who requests the run."""
        parser.add_argument("file", type=Path)
        parser.add_argument("--user", required=True, help="The user who requests it; recorded in the audit trail.")

    def handle(self, *args: Any, file: Path, user: str, **options: Any) -> None:
        """Queue the run and print its id.

        Raises CommandError, which names the field, for a file that cannot be used, an unknown user or project, or a
        user without scope train.
        """
        body = read(file)
        person = User.objects.filter(username=user).first()
        project = Project.objects.filter(slug=body["project"], archived_at=None).first()
        if person is None or project is None:
            raise CommandError(
                f"There is no user {user!r}." if person is None else "project: there is no such project."
            )
        if not may_train(person, project):
            raise CommandError(f"--user {user}: this needs scope 'train' in project {project}.")
        try:
            run = launch_run(
                by=person.as_actor("command"), anyway=body["anyway"], **specification.arguments(body, project)
            )
        except DomainError as error:
            raise CommandError(f"{error.field}: {error.detail}") from None
        self.stdout.write(str(run.pk))


def may_train(person: User, project: Project) -> bool:
    """Return True if the person has scope train in the project."""
    roles = [role for role, scopes in ROLE_SCOPES.items() if Scope.TRAIN in scopes]
    return person.is_superuser or project.memberships.filter(user=person, role__in=roles).exists()


def read(file: Path) -> dict[str, Any]:
    """Read the file and return its fields, validated as the REST API does. Raises CommandError that names the field."""
    try:
        body = loaded(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise CommandError(f"{file} cannot be read: {error}") from None
    serializer = NewTrainingRunSerializer(data=body)
    try:
        require_known(serializer, body)
    except Invalid as error:
        raise CommandError(error.detail) from None
    if not serializer.is_valid():
        field, errors = next(iter(serializer.errors.items()))
        raise CommandError(f"{field}: {errors[0]}")
    validated: dict[str, Any] = serializer.validated_data
    return validated
