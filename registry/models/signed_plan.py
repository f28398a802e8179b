"""The plan of a rollout, the signatures that it needs, and the share of the traffic that is permitted without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models

from adapterhub.core.actor import Actor
from adapterhub.core.counts import counted
from adapterhub.core.errors import Invalid, NotAllowed
from registry.experiments.rollout_plan import check as check_plan
from registry.experiments.rollout_plan import check_answers, require_judge, targets
from registry.models.adapter import AdapterVersion
from registry.models.alias import Alias, served
from registry.models.approval import Approval, ApprovalKind, ApprovalQuerySet, ApprovalStatus, digest_of
from registry.models.evaluation import evaluations_of, objection, shortfall
from registry.models.rollout_share import canary_share, planned_share, share_of, signed_share
from registry.models.rollout_states import ACTIVE, RolloutStatus

ALLOWING = (ApprovalStatus.APPROVED, ApprovalStatus.GLASS_BROKEN, ApprovalStatus.REVIEWED)


class SignedPlan(models.Model):
    """The versions and the plan of a rollout, with the signatures that a protected alias needs; an abstract model."""

    alias = models.ForeignKey(Alias, models.PROTECT, related_name="rollouts")
    stable = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="stable_of")
    candidate = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="candidate_of")
    status = models.CharField(max_length=20, choices=RolloutStatus.choices, default=RolloutStatus.LOADING)
    weight = models.FloatField(default=0, help_text="Percent of the units that the candidate serves.")
    steps = models.JSONField(default=list)
    guardrails = models.JSONField(default=list)
    checks = models.JSONField(default=dict, help_text="What answers are held to: refusal, format, schema, judge.")
    targeting = models.JSONField(default=dict, help_text="Hashes of units kept on one side; the holdout.")
    step = models.PositiveSmallIntegerField(default=0, editable=False, help_text="Counted from 0.")

    if TYPE_CHECKING:
        approvals: ApprovalQuerySet

    class Meta:
        abstract = True

    @property
    def is_active(self) -> bool:
        """True while the rollout is loading, running, paused or awaiting approval.

        False for a draft and after the end.
        """
        return self.status in ACTIVE

    @property
    def is_draft(self) -> bool:
        """Return True if the rollout is a draft that was not opened yet."""
        return self.status == RolloutStatus.DRAFT

    @property
    def is_last_step(self) -> bool:
        """Return True in the last step of the plan."""
        return self.step + 1 >= len(self.steps)

    @property
    def shadow(self) -> float:
        """Percent of the stable version's requests that this step also sends to the candidate, unseen by users."""
        return float(self.steps[self.step].get("shadow", 0))

    @property
    def share(self) -> float:
        """Percent of the traffic that reaches the candidate in the present step: served, mirrored or pinned to it."""
        return share_of(self.weight, self.shadow, self.targeting)

    @property
    def signed_plan(self) -> dict[str, Any]:
        """The parts of the plan that an approver signs: {steps, guardrails, targeting}, without the checks."""
        return {"steps": self.steps, "guardrails": self.guardrails, "targeting": self.targeting}

    @property
    def is_signed(self) -> bool:
        """True if the alias is unprotected, or if exactly the present plan was approved or allowed by break-glass."""
        return not self.alias.quorum or signed_share(self.approvals.all(), self.signed_plan) is not None

    @property
    def permitted_share(self) -> float:
        """Percent of the traffic that the candidate may get.

        It is 100 on an unprotected alias; on a protected one what was signed for the plan, or else the policy's canary
        share.
        """
        if not self.alias.quorum:
            return 100.0
        signed = signed_share(self.approvals.all(), self.signed_plan)
        return canary_share(self.alias, self.candidate) if signed is None else signed

    @property
    def waits_for_signature(self) -> bool:
        """True while the candidate gets no traffic, or less than planned, because its plan is not signed."""
        return self.is_active and self.share > self.permitted_share

    @property
    def promotion_obstacle(self) -> str:
        """The sentence that would refuse a promotion now, for a missing approval or an evaluation.

        "" if nothing would.
        """
        if self.alias.quorum and not self.has_earned_approval:
            return f"{self.alias} is protected: promotion needs {counted(self.alias.quorum, 'approval')} of this plan."
        tasks = self.alias.policy.get("evaluations", [])
        objections = (
            objection(self.candidate, self.alias.version),
            *(shortfall(self.candidate, wanted) for wanted in tasks),
        )
        return next(filter(None, objections), "")

    @property
    def step_obstacle(self) -> str:
        """The sentence that would refuse the next step now, because its share is above the permitted one; "" if not.

        The share is the percent of the traffic that reaches the candidate. In the last step the share of that step is
        judged.
        """
        following = self.steps[self.step + 1] if not self.is_last_step else self.steps[self.step]
        wanted = share_of(following["weight"], following.get("shadow", 0), self.targeting)
        if wanted <= (permitted := self.permitted_share):
            return ""
        return f"A share of {wanted:g} % needs {self.alias.quorum} approval(s); {permitted:g} % are signed."

    def plan(
        self,
        *,
        steps: list[dict[str, Any]],
        guardrails: list[dict[str, Any]],
        checks: dict[str, Any],
        targeting: dict[str, Any] | None,
    ) -> None:
        """Set steps, guardrails, checks, targeting and the first step's weight, without saving.

        `steps` are [{weight, shadow, hold_s, min_samples, approval}], of which only the weight (percent) is required;
        `guardrails` are [{metric, margin, kind, level}], `checks` {refusal, format, schema, judge}. `targeting` is
        {allow, deny, holdout}: the users or sessions who always or never get the candidate, as clients name them, of
        which only hashes are stored, and the percent of users whom no rollout of the alias touches; None keeps the
        present one. Raises Invalid for a plan that cannot be carried out.
        """
        check_plan(steps, guardrails)
        check_answers(checks, guardrails)
        require_judge(checks, has_judge=bool(settings.JUDGE_URL))
        self.steps, self.guardrails, self.checks, self.weight = steps, guardrails, checks, steps[0]["weight"]
        self.targeting = self.targeting if targeting is None else targets(targeting)

    def require_servable(self) -> None:
        """Check that the alias' cluster can serve the candidate, and that the alias does not serve it already.

        Raises Invalid.
        """
        self.candidate.require_servable_on(self.alias.cluster)
        if self.candidate_id == self.alias.version_id:
            raise Invalid(f"{self.alias} serves {self.candidate} already.", field="candidate", code="same_version")

    def request_approval(self, *, reason: str, by: Actor) -> Approval:
        """Request other people's signatures for the candidate's shares and its promotion; return the request.

        Raises Invalid if the rollout is not active or its alias is not protected, and as `Approval.request` does.
        """
        if not self.is_active or not self.alias.quorum:
            raise Invalid(f"{self} needs no approval now.", field="rollout", code="no_approval_needed")
        return Approval.request(
            ApprovalKind.PROMOTION,
            self.alias,
            evidence=self.evidence(),
            rollout=self,
            candidate=self.candidate,
            reason=reason,
            by=by,
        )

    def approval(self) -> Approval:
        """Return an approval that allows the present plan and evidence, signed or by break-glass, and lock its row.

        Raises NotAllowed if there is none.
        """
        if approval := self.earned_approvals().select_for_update().first():
            return approval
        raise NotAllowed(
            f"{self.alias} is protected: promotion needs {counted(self.alias.quorum, 'approval')} of this plan.",
            code="approval_missing",
        )

    def earned_approvals(self) -> models.QuerySet[Approval]:
        """Return the rollout's approvals of its present evidence that can be used, break-glass ones included."""
        return self.approvals.filter(status__in=ALLOWING, bound=digest_of(self.evidence()))

    @property
    def has_earned_approval(self) -> bool:
        """True if one of the rollout's approvals, which may be prefetched, allows the present evidence."""
        bound = digest_of(self.evidence())
        return any(each.status in ALLOWING and each.bound == bound for each in self.approvals.all())

    def require_signed_share(self) -> None:
        """Check that on a protected alias the signatures permit the present share.

        Without an approval of the present evidence the policy's canary share is the limit. Raises NotAllowed, which
        says what is permitted.
        """
        if not self.alias.quorum:
            return
        if self.earned_approvals().exists():
            if self.share > (planned := planned_share(self.signed_plan)):
                raise NotAllowed(
                    f"{self.alias} is protected: of a share of {self.share:g} % only {planned:g} % are signed. Open "
                    "another rollout for more, or promote it.",
                    code="share_not_signed",
                )
        elif self.share > (canary := canary_share(self.alias, self.candidate)):
            raise NotAllowed(
                f"{self.alias} is protected: a share of {self.share:g} % for the candidate needs "
                f"{self.alias.quorum} approval(s) of this plan; {canary:g} % are signed.",
                code="approval_missing",
            )

    def evidence(self) -> dict[str, Any]:
        """Return what an approver signs, as a dict for JSON: both versions' digests, evaluations, plan and quorum."""
        return {
            "alias": self.alias.name,
            "stable": served(self.stable),
            "candidate": served(self.candidate),
            "evaluation": self.candidate.metrics,
            "evaluations": evaluations_of(self.candidate),
            "quorum": self.alias.quorum,
            "plan": self.signed_plan,
        }
