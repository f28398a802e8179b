"""Queue of samples that routers leave for the judge; each is decrypted, scored and deleted at once.

No text reaches a row, a file or a log. Samples without a score are missing from the measurements, and missing
measurements pause a rollout.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import redis
from cryptography.exceptions import InvalidTag
from django.conf import settings
from django.db import transaction

from adapterhub.encryption import SEALED_FOR_US, private_key
from registry.models import Rollout, RolloutUnit
from registry.rollouts.judge_client import NoScore, score
from registry.serving.valkey import valkey
from serving_client.protocol import JUDGING, SAMPLES
from serving_client.reports import Sample

METRIC = "judge_score"
AT_ONCE, LONGEST_S, ALONE_S = 8, 20, 60
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """The score of a sample, with its rollout, arm, user (a hash) and time, without its texts."""

    rollout: Rollout
    arm: str
    unit: str
    at: datetime
    score: float


def judge_waiting() -> int:
    """Score the waiting samples for up to about LONGEST_S, store the scores and return their number.

    The samples are deleted. Returns 0 if no judge is configured, or while another worker scores.
    """
    if not settings.JUDGE_URL:
        return 0
    with valkey() as client:
        if not client.set(JUDGING, 1, nx=True, ex=ALONE_S):
            return 0
        try:
            return sum(keep(scores) for scores in rounds(client))
        finally:
            client.delete(JUDGING)


def rounds(client: redis.Redis) -> Iterator[list[Scored]]:
    """Take samples from the queue in batches and yield the scores of each batch.

    Ends when the queue is empty, when LONGEST_S have passed, or after a batch in which a sample got no score. The
    samples of a batch are deleted, with or without a score; those still in the queue wait for the next run.
    """
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end and (names := cast(list[bytes], client.rpop(SAMPLES, AT_ONCE))):
        samples = take_samples(client, names)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="judge") as threads:
            scores = [one for one in threads.map(lambda pair: scored(*pair), samples) if one]
        yield scores
        if len(scores) < len(samples):
            return


def take_samples(client: redis.Redis, names: list[bytes]) -> list[tuple[Rollout, Sample]]:
    """Delete the named samples from Valkey and return those whose rollout still serves and has a judge.

    The others are lost, as are those that were encrypted for a former key.
    """
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.getdel(name)
        samples = [sample for sealed in pipe.execute() if sealed and (sample := opened(sealed))]
    rollouts = {str(one.pk): one for one in Rollout.objects.serving().filter(checks__has_key="judge")}
    return [(rollouts[sample.rollout], sample) for sample in samples if sample.rollout in rollouts]


def opened(sealed: bytes) -> Sample | None:
    """Decrypt and parse a sample; None if it was encrypted for a former key."""
    try:
        text = SEALED_FOR_US.decrypt(sealed, private_key(SAMPLES))
    except (InvalidTag, ValueError):
        return None
    return Sample.from_json(text)


def scored(rollout: Rollout, sample: Sample) -> Scored | None:
    """Have the judge score the sample; None, with a warning in the log, if it gives no score."""
    try:
        value = score(rollout.checks["judge"]["instruction"], sample.question, sample.answer)
    except NoScore as error:
        log.warning("The judge gave no score for an answer of %s: %s.", rollout.pk, error)
        return None
    return Scored(rollout, sample.arm, sample.unit, datetime.fromtimestamp(sample.at, UTC), value)


def keep(scores: list[Scored]) -> int:
    """Add each user's first score to the measurements of its minute, and return the number of all given scores."""
    with transaction.atomic():
        units = [
            RolloutUnit(rollout=one.rollout, unit=one.unit, arm=one.arm, weight=one.rollout.weight) for one in scores
        ]
        users = RolloutUnit.locked(units)
        RolloutUnit.count_first(
            (users[user.key], (one.rollout, one.arm, one.at, METRIC, one.score))
            for user, one in zip(units, scores, strict=True)
        )
    return len(scores)
