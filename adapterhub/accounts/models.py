"""The models of users, projects (tenants), roles, sign-ins and API tokens."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.contrib.sessions.models import Session
from django.db import models
from django.utils.timezone import now

from adapterhub.accounts.limited import LIMITS_ABOVE_ZERO, Limited
from adapterhub.core.actor import Actor
from adapterhub.core.tenancy import ROLE_SCOPES, Role, Scope, roles_with
from adapterhub.core.tokens import new_id_and_secret, secret_hash, text_of


class User(AbstractUser):
    """A person, or a service account, which is for programs: it has roles and tokens and never signs in."""

    is_service = models.BooleanField(default=False, editable=False)
    owner = models.ForeignKey(
        "self",
        models.PROTECT,
        null=True,
        blank=True,
        editable=False,
        related_name="owned_accounts",
        help_text="The person who answers for a service account.",
    )

    class Meta(AbstractUser.Meta):
        constraints = [
            models.CheckConstraint(
                condition=models.Q(is_service=False) | models.Q(password__startswith="!"),  # noqa: S106 - the mark of an unusable one
                name="a_service_account_has_no_password",
            ),
            models.CheckConstraint(
                condition=models.Q(owner=None) | models.Q(is_service=True), name="only_a_service_account_has_an_owner"
            ),
        ]

    def as_actor(self, method: str = "session") -> Actor:
        """Return this user as the actor of an operation, signed in by `method`."""
        return Actor(user=self, name=self.get_username(), method=method)

    def scopes_in(self, project: Project) -> set[str]:
        """Return the scopes that the user's roles in the project grant; a superuser also has all scopes of tokens."""
        return self.scopes_in_project(project.pk)

    def scopes_in_project(self, project_id: int) -> set[str]:
        """Return the same as `scopes_in`, by the project's id; reads prefetched memberships if there are any."""
        scopes = set(Scope.values) if self.is_superuser else set()
        roles = [held_role.role for held_role in self.memberships.all() if held_role.project_id == project_id]
        return scopes.union(*(ROLE_SCOPES[role] for role in roles))

    def projects(self) -> ProjectQuerySet:
        """Return the projects whose objects the user may see."""
        return Project.objects.visible_to(self)

    def projects_with(self, scope: str) -> ProjectQuerySet:
        """Return the projects in which the user has the scope.

        For a superuser these are all projects if tokens can have the scope, else none, whatever the user's roles.
        """
        if self.is_superuser:
            return Project.objects.all() if scope in Scope.values else Project.objects.none()
        memberships = Membership.objects.filter(user_id=self.pk, role__in=roles_with(scope))
        return Project.objects.filter(pk__in=memberships.values("project"))

    def visible_rows(self, queryset: models.QuerySet[Any], path: str, scope: str) -> models.QuerySet[Any]:
        """Return the rows whose project the user sees or, if `scope` is not empty, in which the user has that scope.

        `path` is the lookup from a row to its project.
        """
        return queryset.filter(**{f"{path}__in": self.projects_with(scope) if scope else self.projects()})


class ProjectQuerySet(models.QuerySet["Project"]):
    """Query set of projects, filtered by who may see them."""

    def visible_to(self, user: User) -> ProjectQuerySet:
        """Return the projects that the user is a member of; all for a superuser."""
        return self if user.is_superuser else self.filter(pk__in=user.memberships.values("project"))


class NamedVersions(models.TextChoices):
    """The versions that callers of the router may name, of adapters that have a protected alias."""

    APPROVED = "approved", "approved ones only"
    ANY = "any", "any"


class Project(Limited):
    """A tenant: every adapter, dataset, alias and audit chain belongs to one."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=200)
    named_versions = models.CharField(
        max_length=10,
        choices=NamedVersions.choices,
        default=NamedVersions.APPROVED,
        db_default=NamedVersions.APPROVED,
        help_text="Versions that callers may name, of adapters with a protected alias.",
    )
    archived_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=now, editable=False)

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ["slug"]
        constraints = [models.CheckConstraint(condition=LIMITS_ABOVE_ZERO, name="project_limits_are_above_zero")]

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


class InvitationQuerySet(models.QuerySet["Invitation"]):
    """Query set of invitations, filtered by their state."""

    def open(self) -> InvitationQuerySet:
        """Return the invitations that can be accepted now: open, not expired, and of a project that is not archived."""
        return self.filter(state=Invitation.State.OPEN, expires_at__gt=now(), project__archived_at=None)


class Invitation(models.Model):
    """An offer of a role in a project to a person, who may have no account yet, with its state."""

    class State(models.TextChoices):
        """The state of an invitation; an open one ends by itself at `expires_at`."""

        OPEN = "open"
        ACCEPTED = "accepted"
        DECLINED = "declined"
        REVOKED = "revoked"
        EXPIRED = "expired"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, models.PROTECT, related_name="invitations")
    address = models.CharField(max_length=254, help_text="A mail address in small letters, or a user name.")
    role = models.CharField(max_length=20, choices=Role.choices)
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    invited_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(default=now, editable=False)
    expires_at = models.DateTimeField(editable=False)
    closed_at = models.DateTimeField(null=True, editable=False)

    objects = InvitationQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["project", "address", "role"], condition=models.Q(state="open"), name="one_open_invitation"
            ),
            models.CheckConstraint(
                condition=models.Q(state="open", closed_at=None) | ~models.Q(state="open") & ~models.Q(closed_at=None),
                name="a_closed_invitation_says_since_when",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.address} as {self.role} in {self.project}"

    @property
    def state_now(self) -> str:
        """Return the state, which is `expired` for an open invitation whose time is over."""
        is_over = self.state == self.State.OPEN and self.expires_at <= now()
        return str(self.State.EXPIRED if is_over else self.state)


class SignInQuerySet(models.QuerySet["SignIn"]):
    """Sign-ins, filtered by whether their session is open."""

    def open(self) -> SignInQuerySet:
        """Return the sign-ins whose session has neither ended nor expired."""
        return self.filter(session_key__in=Session.objects.filter(expire_date__gt=now()).values("session_key"))


class SignIn(models.Model):
    """A session of a person, stored so that they or an administrator can see it and end it."""

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


class FailedAttempts(models.Model):
    """The failed attempts at a password or code; `key` is a hash of whose it is and where the attempts came from.

    `level`, the attempts not forgotten yet, sinks with time; see `login_lockout`, which also sets `blocked_until`.
    """

    key = models.CharField(primary_key=True, max_length=64)
    level = models.FloatField(default=0)
    at = models.DateTimeField(default=now, db_index=True)
    blocked_until = models.DateTimeField(default=now)

    def __str__(self) -> str:
        return f"{self.level:.1f} failed attempts"


class SecondFactor(models.Model):
    """A person's second factor: the app's secret, encrypted as `sealed`, and the hashes of unused recovery codes."""

    user = models.OneToOneField(User, models.PROTECT, related_name="second_factor")
    sealed = models.BinaryField()
    last_step = models.BigIntegerField(help_text="The time step of the last code, which is not good again.")
    recovery = ArrayField(models.CharField(max_length=64), help_text="sha256 of each recovery code that is left.")
    since = models.DateTimeField(default=now, editable=False)

    def __str__(self) -> str:
        return f"second factor of {self.user}"


class SetupLink(models.Model):
    """The one-time link that creates the first administrator: one row, with the hash of the secret, not the secret."""

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY, editable=False)
    secret_hash = models.CharField(max_length=64, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    expires_at = models.DateTimeField(editable=False)
    used_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="one_setup_link")]

    def __str__(self) -> str:
        return f"setup link until {self.expires_at:%Y-%m-%d %H:%M} UTC"


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    """Query set of tokens, filtered by their state and their owner."""

    def owned_by(self, user_id: int) -> ApiTokenQuerySet:
        """Return the tokens that this user owns: those of the service account, or made by the person for no account."""
        return self.filter(models.Q(account=user_id) | models.Q(account=None, created_by=user_id))

    def usable(self) -> ApiTokenQuerySet:
        """Return the tokens that are not revoked, expired or waiting for an approval, and whose owner is active."""
        known = (
            self.filter(revoked_at=None).exclude(expires_at__lte=now()).exclude(needs_approval=True, approved_at=None)
        )
        return known.exclude(account__is_active=False).exclude(account=None, created_by__is_active=False)

    def waiting(self) -> ApiTokenQuerySet:
        """Return the tokens of scope admin that nobody has approved yet, without revoked and expired ones."""
        live = self.filter(needs_approval=True, approved_at=None, revoked_at=None)
        return live.exclude(expires_at__lte=now())


class ApiToken(Limited):
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
            ),
            models.CheckConstraint(condition=LIMITS_ABOVE_ZERO, name="token_limits_are_above_zero"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"

    @property
    def is_waiting(self) -> bool:
        """Return True while the token waits for another person's approval."""
        return self.needs_approval and self.approved_at is None

    @property
    def is_usable(self) -> bool:
        """Return True unless the token is revoked, expired or waiting for approval, or its owner is closed."""
        is_over = self.revoked_at is not None or (self.expires_at is not None and self.expires_at <= now())
        return not is_over and not self.is_waiting and (self.owner is None or self.owner.is_active)

    @property
    def owner(self) -> User | None:
        """Return the account whose roles limit the token: its service account, else its maker.

        None for a token of the server itself.
        """
        return self.account or self.created_by

    def scopes_now(self) -> set[str]:
        """Return those of the token's scopes that its owner's roles in the project grant now; all without an owner."""
        scopes = set(self.scopes)
        return scopes if self.owner is None else scopes & self.owner.scopes_in_project(self.project_id)

    def scopes_in(self, project: Project) -> set[str]:
        """Return the token's scopes in the project; none in another project than its own."""
        return self.scopes_now() if self.project_id == project.pk else set()

    def projects(self) -> ProjectQuerySet:
        """Return the token's project; none if its owner has no role left that grants a scope of the token."""
        return self.project_if(bool(self.scopes_now()))

    def projects_with(self, scope: str) -> ProjectQuerySet:
        """Return the token's project if the token has the scope, else none."""
        return self.project_if(scope in self.scopes_now())

    def project_if(self, is_seen: bool) -> ProjectQuerySet:
        """Return the token's project if `is_seen` is True, else an empty query set."""
        return Project.objects.filter(pk=self.project_id) if is_seen else Project.objects.none()

    def visible_rows(self, queryset: models.QuerySet[Any], path: str, scope: str) -> models.QuerySet[Any]:
        """Return the rows of the token's project; none if the token lacks `scope`.

        `path` is the lookup from a row to its project. With an empty `scope`, any scope that the token has now
        suffices.
        """
        scopes = self.scopes_now()
        is_seen = scope in scopes if scope else bool(scopes)
        return queryset.filter(**{path: self.project_id}) if is_seen else queryset.none()

    @classmethod
    def issue(cls, **fields: Any) -> tuple[ApiToken, str]:
        """Create a token from the model's fields; return it and its text, which cannot be read again."""
        token_id, secret = new_id_and_secret()
        token = cls.objects.create(id=token_id, secret_hash=secret_hash(secret), **fields)
        return token, text_of(token_id, secret)

    def was_used(self) -> None:
        """Save the time of use, unless one was saved within the last minute.

        With a write for each request, the requests of a token would queue up.
        """
        if self.last_used_at is None or now() - self.last_used_at > timedelta(minutes=1):
            ApiToken.objects.filter(pk=self.pk).update(last_used_at=now())

    def as_actor(self) -> Actor:
        """Return the actor of requests with this token: its owner as user, named after its account or `token:NAME`."""
        name = self.account.get_username() if self.account else f"token:{self.name}"
        return Actor(user=self.owner, name=name, method="token", token_id=self.id)
