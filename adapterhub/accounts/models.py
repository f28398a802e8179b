"""Who acts: users, projects (tenants), roles and API tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.contrib.sessions.models import Session
from django.db import models
from django.utils.timezone import now

from adapterhub.core.actor import Actor
from adapterhub.core.tenancy import ROLE_SCOPES, Role, Scope, roles_with
from adapterhub.core.tokens import new_id_and_secret, secret_hash, text_of


class User(AbstractUser):
    """A person, or a service account: a name for programs, which has roles and tokens and never signs in."""

    is_service = models.BooleanField(default=False, editable=False)

    class Meta(AbstractUser.Meta):
        constraints = [
            models.CheckConstraint(
                condition=models.Q(is_service=False) | models.Q(password__startswith="!"),  # noqa: S106 - the mark of an unusable one
                name="a_service_account_has_no_password",
            )
        ]

    def as_actor(self, method: str = "session") -> Actor:
        """This user as the one who acts, signed in by `method`."""
        return Actor(user=self, name=self.get_username(), method=method)

    def scopes_in(self, project: Project) -> set[str]:
        """What the user's roles in the project grant."""
        held = set(Scope.values) if self.is_superuser else set()
        roles = project.memberships.filter(user_id=self.pk).values_list("role", flat=True)
        return held.union(*(ROLE_SCOPES[role] for role in roles))

    def projects(self) -> ProjectQuerySet:
        """The projects whose things the user may see."""
        return Project.objects.visible_to(self)

    def projects_with(self, scope: str) -> ProjectQuerySet:
        """The projects in which the user has the scope."""
        if self.is_superuser:
            return Project.objects.all() if scope in Scope.values else Project.objects.none()
        held = Membership.objects.filter(user_id=self.pk, role__in=roles_with(scope))
        return Project.objects.filter(pk__in=held.values("project"))

    def visible_rows(self, queryset: models.QuerySet[Any], path: str, scope: str) -> models.QuerySet[Any]:
        """The rows whose project, found by `path`, the user sees; with a scope, has it in."""
        return queryset.filter(**{f"{path}__in": self.projects_with(scope) if scope else self.projects()})


class ProjectQuerySet(models.QuerySet["Project"]):
    def visible_to(self, user: User) -> ProjectQuerySet:
        """The projects that the user is a member of; a superuser sees all."""
        return self if user.is_superuser else self.filter(pk__in=user.memberships.values("project"))


class Project(models.Model):
    """A tenant: every adapter, dataset, alias and audit chain belongs to one."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=200)
    archived_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=now, editable=False)

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug


class Membership(models.Model):
    """A user's role in a project."""

    Role = Role

    project = models.ForeignKey(Project, models.PROTECT, related_name="memberships")
    user = models.ForeignKey(User, models.PROTECT, related_name="memberships")
    role = models.CharField(max_length=20, choices=Role.choices)
    by_group = models.BooleanField(default=False, editable=False, help_text="Granted by a group of the sign-in.")

    class Meta:
        ordering = ["project", "user"]
        constraints = [models.UniqueConstraint(fields=["project", "user", "role"], name="one_membership_per_role")]

    def __str__(self) -> str:
        return f"{self.user} is {self.role} in {self.project}"


class SignInQuerySet(models.QuerySet["SignIn"]):
    def open(self) -> SignInQuerySet:
        """Those whose session has neither ended nor run out."""
        return self.filter(session_key__in=Session.objects.filter(expire_date__gt=now()).values("session_key"))


class SignIn(models.Model):
    """A session of a person, so that they and an administrator can see it and end it."""

    user = models.ForeignKey(User, models.PROTECT, related_name="sign_ins")
    session_key = models.CharField(max_length=40, unique=True)
    at = models.DateTimeField(default=now, editable=False)
    method = models.CharField(max_length=20)
    address = models.GenericIPAddressField(null=True)
    agent = models.CharField(max_length=200, blank=True)

    objects = SignInQuerySet.as_manager()

    class Meta:
        ordering = ["-at"]

    def __str__(self) -> str:
        return f"{self.user} since {self.at}"


class SecondFactor(models.Model):
    """What a person shows beside the password. `sealed` is the secret that the person's app holds, encrypted."""

    user = models.OneToOneField(User, models.PROTECT, related_name="second_factor")
    sealed = models.BinaryField()
    last_step = models.BigIntegerField(help_text="The time step of the last code, which is not good again.")
    recovery = ArrayField(models.CharField(max_length=64), help_text="sha256 of each recovery code that is left.")
    since = models.DateTimeField(default=now, editable=False)

    def __str__(self) -> str:
        return f"second factor of {self.user}"


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def usable(self) -> ApiTokenQuerySet:
        """Neither revoked nor expired nor waiting for an approval, and of somebody who is still here."""
        known = (
            self.filter(revoked_at=None).exclude(expires_at__lte=now()).exclude(needs_approval=True, approved_at=None)
        )
        return known.exclude(account__is_active=False).exclude(account=None, created_by__is_active=False)

    def waiting(self) -> ApiTokenQuerySet:
        """Those that work as soon as another person approves them."""
        live = self.filter(needs_approval=True, approved_at=None, revoked_at=None)
        return live.exclude(expires_at__lte=now())


class ApiToken(models.Model):
    """A bearer token `ah_<id>_<secret>` of one project; only the secret's hash is kept."""

    id = models.CharField(primary_key=True, max_length=12, editable=False)
    name = models.CharField(max_length=200)
    project = models.ForeignKey(Project, models.PROTECT, related_name="tokens")
    scopes = ArrayField(models.CharField(max_length=20, choices=Scope.choices))
    secret_hash = models.CharField(max_length=64, editable=False)
    account = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="tokens")
    created_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(default=now, editable=False)
    reason = models.TextField(blank=True)
    needs_approval = models.BooleanField(default=False)
    approved_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    approved_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(approved_by=None) | ~models.Q(approved_by=models.F("created_by")),
                name="token_approver_is_another",
            )
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"

    @property
    def is_waiting(self) -> bool:
        return self.needs_approval and self.approved_at is None

    @property
    def is_usable(self) -> bool:
        """Of one token what `ApiTokenQuerySet.usable` is of many."""
        owner = self.account or self.created_by
        is_over = self.revoked_at is not None or (self.expires_at is not None and self.expires_at <= now())
        return not is_over and not self.is_waiting and (owner is None or owner.is_active)

    def scopes_now(self) -> set[str]:
        """What it may do; of a service account's, no more than its roles in the project grant by now."""
        if self.account is None:
            return set(self.scopes)
        held = [role.role for role in self.account.memberships.all() if role.project_id == self.project_id]
        return set(self.scopes).intersection(set[str]().union(*(ROLE_SCOPES[role] for role in held)))

    def scopes_in(self, project: Project) -> set[str]:
        """What it may do in the project: nothing in another one than its own."""
        return self.scopes_now() if self.project_id == project.pk else set()

    def projects(self) -> ProjectQuerySet:
        """Its own project."""
        return Project.objects.filter(pk=self.project_id)

    def projects_with(self, scope: str) -> ProjectQuerySet:
        """Its own project if it has the scope, else none."""
        return self.projects() if scope in self.scopes_now() else Project.objects.none()

    def visible_rows(self, queryset: models.QuerySet[Any], path: str, scope: str) -> models.QuerySet[Any]:
        """The rows of its own project, found by `path`; with a scope that it lacks, none."""
        found = queryset.filter(**{path: self.project_id})
        return found if not scope or scope in self.scopes_now() else found.none()

    @classmethod
    def issue(cls, **fields: Any) -> tuple[ApiToken, str]:
        """Create a token; returns it and its text, which cannot be read again."""
        token_id, secret = new_id_and_secret()
        token = cls.objects.create(id=token_id, secret_hash=secret_hash(secret), **fields)
        return token, text_of(token_id, secret)

    def was_used(self) -> None:
        """Keep when, to the minute: a write for each request would make a token's requests wait for each other."""
        if self.last_used_at is None or now() - self.last_used_at > timedelta(minutes=1):
            ApiToken.objects.filter(pk=self.pk).update(last_used_at=now())

    def as_actor(self) -> Actor:
        """This token as the one who acts: for its service account, else for its maker."""
        name = self.account.get_username() if self.account else f"token:{self.name}"
        return Actor(user=self.account or self.created_by, name=name, method="token", token_id=self.id)
