"""Aliases: the stable public names that clients send as `model`, with the history of their moves."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import IntegrityError, models, transaction
from django.db.models import Window
from django.db.models.functions import Lead
from django.utils.timezone import now

from adapterhub.accounts.models import Project
from adapterhub.api.etags import require_tag, tag_of
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Conflict, Invalid, NotAllowed
from registry.domain_signals import routes_changed
from registry.models.adapter import Adapter, AdapterVersion
from registry.models.alias_policy import check_policy
from registry.models.approval import Approval, ApprovalKind, ApprovalStatus, digest_of
from registry.models.evaluation import require_no_objection, require_scores
from registry.models.fleet.cluster import Cluster


class AliasQuerySet(models.QuerySet["Alias"]):
    """Aliases, selected by what protects them."""

    def protected(self) -> AliasQuerySet:
        """Return the aliases whose promotions need signatures."""
        return self.filter(policy__quorum__gte=1)


class Alias(models.Model):
    """A public name that clients send as `model`; each change is recorded in the audit trail.

    `version` is the version that it serves now; `generation` counts its moves, the creation included.
    """

    project = models.ForeignKey(Project, models.PROTECT, related_name="aliases")
    name = models.SlugField()
    cluster = models.ForeignKey(Cluster, models.PROTECT, related_name="aliases")
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="aliases")
    policy = models.JSONField(default=dict, blank=True)
    default_of = models.OneToOneField(
        Adapter,
        models.PROTECT,
        null=True,
        blank=True,
        editable=False,
        related_name="default_alias",
        help_text="The adapter whose bare name stands for this alias.",
    )
    generation = models.PositiveIntegerField(default=1, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)

    objects = AliasQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["project", "name"], name="one_alias_per_name")]
        verbose_name_plural = "aliases"

    def __str__(self) -> str:
        return self.name

    @property
    def ref(self) -> str:
        """The alias' name among all projects: `project.alias`."""
        return f"{self.project.slug}.{self.name}"

    @property
    def quorum(self) -> int:
        """Number of approvals that a promotion needs; 0 for an alias that is not protected."""
        return int(self.policy.get("quorum", 0))

    @property
    def etag(self) -> str:
        """The ETag of the alias' state: its generation and a digest of its policy."""
        return f"{self.generation}-{tag_of(self.policy)}"

    @classmethod
    def create(
        cls,
        *,
        project: Project,
        name: str,
        cluster: Cluster,
        version: AdapterVersion,
        policy: dict[str, Any],
        by: Actor,
        default: bool = False,
    ) -> Alias:
        """Create an alias that serves a version at once, record that, and return it.

        With `default`, calls with the adapter's bare name then go to it. The first alias of a project on another
        project's cluster accepts the grant of that cluster. Raises Invalid for a policy, version or cluster that cannot
        be used, and Conflict for a used name, if an evaluation speaks against the version or one that the policy asks
        for is missing, and as `set_default` does.
        """
        check_policy(policy)
        require_signed_canary(policy, quorum=0)
        require_of_project(version, project)
        try:
            with transaction.atomic():
                cluster.accept_for(project, by=by)
                version.require_servable_on(cluster)
                require_no_objection(version)
                require_scores(version, policy)
                alias = cls.objects.create(project=project, name=name, cluster=cluster, version=version, policy=policy)
                alias.moves.create(version=version, actor_name=by.name, at=alias.created_at)
                AuditEvent.record(Tag.ALIAS_CREATED, alias, by=by, project=project, after=served(version))
                send_on_commit(routes_changed, alias=alias.pk)
                if default:
                    alias.set_default(True, by=by)
        except IntegrityError:
            raise Conflict(f"The alias {name!r} is taken: choose another.", field="name", code="name_taken") from None
        return alias

    def move(
        self, version: AdapterVersion, *, expected: AdapterVersion, reason: str, by: Actor, expected_tag: str = ""
    ) -> None:
        """Serve another version at once, if the alias still serves the expected one, and record that.

        Evaluations are checked unless the alias has served the version before. Raises Conflict with the served version
        if that is not the expected one, while a rollout is active, if an evaluation speaks against the version or one
        that the policy asks for is missing, and as `point_to` does; NotAllowed for a protected alias; Invalid for a
        version of another project, or one that the cluster cannot serve; PreconditionFailed if `expected_tag` is given
        and is not the ETag.
        """
        with transaction.atomic():
            alias = (
                Alias.objects.select_related("project", "cluster__base_model")
                .select_for_update(of=("self",))
                .get(pk=self.pk)
            )
            require_tag(alias, expected_tag)
            if alias.version_id != expected.pk:
                raise Conflict(f"{alias} serves {alias.version} now, not {expected}.", code="alias_moved")
            if alias.rollouts.active().exists():
                raise Conflict(
                    f"A rollout of {alias} is active: promote it or roll it back first.", code="rollout_active"
                )
            if alias.quorum:
                raise NotAllowed(f"{alias} is protected: only an approved rollout can move it.", code="alias_protected")
            require_of_project(version, alias.project)
            version.require_servable_on(alias.cluster)
            # A version that was served here before needs no evaluation, so that a bad move can be undone at any time.
            if not alias.moves.filter(version=version).exists():
                require_no_objection(version, expected)
                require_scores(version, alias.policy)
            alias.point_to(version, reason=reason, by=by)
            AuditEvent.record(
                Tag.ALIAS_MOVED,
                alias,
                by=by,
                project=alias.project,
                before=served(expected),
                after=served(version),
                reason=reason,
            )
        self.version, self.generation = version, alias.generation

    def set_default(self, wanted: bool, *, by: Actor, reason: str = "", expected_tag: str = "") -> None:
        """Send calls with the served adapter's bare name to this alias, or, with `wanted` False, no longer.

        Record that. The alias that had the name loses it. Nothing happens if nothing would change. Raises
        PreconditionFailed as `move` does, and Conflict if it would take the name from a protected alias, whose callers
        would get versions that nobody approved for it.
        """
        with transaction.atomic():
            alias = Alias.objects.select_for_update().get(pk=self.pk)
            require_tag(alias, expected_tag)
            adapter = alias.version.adapter
            former = Alias.objects.select_for_update().filter(default_of=adapter).first()
            before, after = (former.name if former else None), (alias.name if wanted else None)
            if (former == alias) == wanted:
                return
            if former and former.quorum:
                raise Conflict(
                    f"{former} is protected and the default of {adapter}: lift its protection by an approval first.",
                    code="default_protected",
                )
            Alias.objects.filter(default_of=adapter).update(default_of=None)
            alias.default_of = adapter if wanted else None
            alias.save(update_fields=["default_of"])
            for changed in {former or alias, alias}:
                send_on_commit(routes_changed, alias=changed.pk)
            AuditEvent.record(
                Tag.ADAPTER_DEFAULT_SET,
                alias,
                by=by,
                project=alias.project,
                before={"adapter": adapter.slug, "default": before},
                after={"adapter": adapter.slug, "default": after},
                reason=reason,
            )
        self.refresh_from_db()

    def served_before_a_new_version(self, since: datetime) -> AdapterVersion | None:
        """Return the version that the alias' last move replaced, if that move is recent and was to a new version.

        None if the last move was before `since`, was the first one, or was to a version that the alias had served
        before.
        """
        last, *former = self.moves.select_related("version").order_by("-at", "-id")[:2]
        is_new = not self.moves.filter(version=last.version).exclude(pk=last.pk).exists()
        return former[0].version if former and is_new and last.at >= since else None

    def point_to(self, version: AdapterVersion, *, reason: str, by: Actor) -> None:
        """Change the served version, increment the generation and add the move to the history.

        The routers follow on commit. The caller must record the audit event. Raises Conflict for a version of another
        adapter than the one whose bare name calls this alias.
        """
        if self.default_of_id not in (None, version.adapter_id):
            raise Conflict(
                f"{self} is the default of {self.default_of}: end that before it serves another adapter.",
                code="default_of_another",
            )
        self.version = version
        self.generation += 1
        self.save(update_fields=["version", "generation"])
        self.moves.create(version=version, actor_name=by.name, reason=reason)
        send_on_commit(routes_changed, alias=self.pk)

    def set_policy(self, policy: dict[str, Any], *, by: Actor, reason: str = "", expected_tag: str = "") -> None:
        """Replace the policy (quorum, canary, cache, evaluations, replicas) and record that.

        The routers follow on commit. An approval for it is used up. Raises Invalid for a bad policy, NotAllowed if the
        alias is protected and nobody approved exactly this change, and PreconditionFailed if `expected_tag` is given
        and is not the ETag.
        """
        check_policy(policy)
        with transaction.atomic():
            alias = Alias.objects.select_for_update().get(pk=self.pk)
            require_tag(alias, expected_tag)
            require_signed_canary(policy, quorum=alias.quorum)
            approval = alias.policy_approval(policy) if alias.quorum and policy != alias.policy else None
            before, alias.policy = alias.policy, policy
            alias.save(update_fields=["policy"])
            if approval:
                approval.use(by=by)
            send_on_commit(routes_changed, alias=alias.pk)
            AuditEvent.record(
                Tag.ALIAS_POLICY_CHANGED,
                alias,
                by=by,
                project=alias.project,
                before=before,
                after=policy,
                reason=reason,
            )
        self.refresh_from_db()

    def policy_approval(self, policy: dict[str, Any]) -> Approval:
        """Return the approval of exactly this policy in place of the present one, locked.

        It must be approved and unused. Raises NotAllowed if there is none.
        """
        matching = self.approvals.select_for_update().filter(
            kind=ApprovalKind.ALIAS_POLICY,
            status=ApprovalStatus.APPROVED,
            bound=digest_of(self.policy_evidence(policy)),
        )
        if approval := matching.first():
            return approval
        raise NotAllowed(
            f"{self} is protected: another person must approve a change of its policy.", code="approval_missing"
        )

    def request_policy(self, policy: dict[str, Any], *, reason: str, by: Actor) -> Approval:
        """Request approval for a new policy of a protected alias; return the request.

        Raises Invalid for a bad policy or an alias that is not protected, and as `Approval.request` does.
        """
        check_policy(policy)
        if not self.quorum:
            raise Invalid(
                f"{self} is not protected: its policy can be changed without approval.",
                field="alias",
                code="unprotected",
            )
        evidence = self.policy_evidence(policy)
        return Approval.request(ApprovalKind.ALIAS_POLICY, self, evidence=evidence, policy=policy, reason=reason, by=by)

    def policy_evidence(self, policy: dict[str, Any]) -> dict[str, Any]:
        """Return the content that an approver signs: the present policy and the wanted one."""
        return {"alias": self.name, "policy": self.policy, "wanted": policy}

    def served_at(self, moment: datetime) -> AdapterVersion | None:
        """Return the version that the alias served at that time, or None if the alias did not exist yet."""
        move = self.moves.filter(at__lte=moment).select_related("version").first()
        return move.version if move else None


class AliasMoveQuerySet(models.QuerySet["AliasMove"]):
    """Moves of aliases, selected by their time."""

    def replaced_since(self, moment: datetime) -> AliasMoveQuerySet:
        """Return the moves whose version was replaced by a later move at or after the moment."""
        until = Window(Lead("at"), partition_by="alias", order_by=["at", "id"])
        return self.annotate(until=until).filter(until__gte=moment)


class AliasMove(models.Model):
    """One change of the version that an alias serves; a database trigger refuses changes to the row."""

    alias = models.ForeignKey(Alias, models.PROTECT, related_name="moves")
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="moves")
    at = models.DateTimeField(default=now)
    actor_name = models.CharField(max_length=200)
    reason = models.TextField(blank=True)

    objects = AliasMoveQuerySet.as_manager()

    class Meta:
        ordering = ["-at", "-id"]

    def __str__(self) -> str:
        return f"{self.alias} -> {self.version}"


def served(version: AdapterVersion) -> dict[str, str]:
    """Return a version's served name and digest, as the audit trail records them."""
    return {"version": version.served_name, "digest": version.digest}


def require_of_project(version: AdapterVersion, project: Project) -> None:
    """Raise Invalid unless the version belongs to the project."""
    if version.adapter.project_id != project.pk:
        raise Invalid(
            "There is no such version in this project: check its served name.", field="version", code="unknown_version"
        )


def require_signed_canary(policy: dict[str, Any], *, quorum: int) -> None:
    """Refuse a canary share in the policy unless the alias is protected already. Raises Invalid.

    `quorum` is that of the alias' present policy, 0 for a new alias.
    """
    if "canary" in policy and not quorum:
        raise Invalid(
            "canary: it counts only when signed. Set quorum first, then request approval of a policy with canary.",
            field="policy",
            code="canary_not_signed",
        )
