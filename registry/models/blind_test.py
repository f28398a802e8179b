"""Blind tests: a prompt answered by two to four versions, and votes of people who do not know which is which."""

from __future__ import annotations

import secrets
import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.db import IntegrityError, models, transaction
from django.utils.timezone import now

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict, Invalid
from registry.models.adapter import Adapter

LETTERS = "ABCD"
NO_DIFFERENCE = "none"


class BlindTest(models.Model):
    """One prompt and its answers in random order. A person sees letters until they vote, and versions afterwards."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    adapter = models.ForeignKey(Adapter, models.PROTECT, related_name="blind_tests")
    numbers = ArrayField(models.PositiveIntegerField(), help_text="The versions' numbers, ascending.")
    prompt = models.TextField()
    answers = models.JSONField(help_text="In a drawn order: number, text, response_id, seconds, tokens.")
    asked_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["adapter", "numbers"], name="blind_tests_of_versions")]

    def __str__(self) -> str:
        return f"blind test of {self.adapter} {', '.join(f'v{number}' for number in self.numbers)}"

    @property
    def project(self) -> Project:
        """Return the adapter's project."""
        return self.adapter.project

    @classmethod
    def keep(cls, adapter: Adapter, prompt: str, answers: list[dict[str, Any]], *, by: Actor) -> BlindTest:
        """Store a test with its answers in a random order, record that, and return it.

        `answers` has one answer of each version: {number, text, response_id, seconds, tokens}, `number` being the
        version's. Nobody can predict the order.
        """
        shuffled = list(answers)
        secrets.SystemRandom().shuffle(shuffled)
        numbers = sorted(answer["number"] for answer in answers)
        with transaction.atomic():
            fields = {"numbers": numbers, "prompt": prompt, "answers": shuffled, "asked_by": by.user}
            test = cls.objects.create(adapter=adapter, **fields)
            AuditEvent.record(Tag.BLIND_TEST_ASKED, test, by=by, project=test.project, after={"versions": numbers})
        return test

    def vote(self, letter: str, *, by: Actor) -> BlindVote:
        """Store, record and return a person's only vote, which is final and reveals the versions to that person.

        `letter` is an answer's, or `none`. Raises Invalid for any other, and Conflict if the person has voted already.
        """
        try:
            with transaction.atomic():
                vote = BlindVote.objects.create(test=self, voter=by.user, preferred=self.number_of(letter))
                after = {"preferred": vote.preferred, "versions": self.numbers}
                AuditEvent.record(Tag.BLIND_TEST_VOTED, self, by=by, project=self.project, after=after)
        except IntegrityError:
            raise Conflict("You have already voted: a vote is final.", code="vote_given") from None
        return vote

    def number_of(self, letter: str) -> int | None:
        """Return the number of the version that gave the answer with this letter; None for "no difference" (`none`).

        Raises Invalid for any other letter.
        """
        if letter == NO_DIFFERENCE:
            return None
        place = LETTERS.find(letter) if len(letter) == 1 else -1
        if not 0 <= place < len(self.answers):
            raise Invalid(f"There is no answer {letter[:9]!r}: choose one of the letters shown.", field="letter")
        number: int = self.answers[place]["number"]
        return number


class BlindVote(models.Model):
    """A person's vote: the number of the preferred version, or null for no difference."""

    test = models.ForeignKey(BlindTest, models.PROTECT, related_name="votes")
    voter = models.ForeignKey(User, models.PROTECT, related_name="+")
    preferred = models.PositiveIntegerField(null=True)
    at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["at"]
        constraints = [models.UniqueConstraint(fields=["test", "voter"], name="one_blind_vote_a_person")]

    def __str__(self) -> str:
        return f"{self.voter} on {self.test_id}"


def tally(numbers: list[int], votes: Iterable[int | None]) -> list[dict[str, Any]]:
    """Return a row {number, votes, share} for each version, with its share (0 to 1) of all votes.

    `numbers` are the versions' numbers; each of `votes` is the preferred one's number, or None for "no difference",
    which is the last row, with number None.
    """
    counted = Counter(votes)
    total = max(1, counted.total())
    rows = [(number, counted[number]) for number in (*numbers, None)]
    return [{"number": number, "votes": count, "share": count / total} for number, count in rows]
