"""The check of a registered base model: its files are fetched and inspected, then it is ready or rejected."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings
from django.db import connection

from adapterhub.artifacts import ArtifactError
from adapterhub.core.errors import DomainError
from registry.base_models.fetch import NotFetched, fetch_base_model
from registry.models import AdapterVersion, BaseModel, BaseModelStatus

log = logging.getLogger(__name__)
EXPECTED = (SoftTimeLimitExceeded, NotFetched, ArtifactError, DomainError, OSError, AdapterVersion.DoesNotExist)


def check(pk: int) -> None:
    """Fetch and inspect the base model with primary key `pk`, unless its check has ended or another worker runs it.

    Any failure rejects the model with the reason, so that none stays `checking`; so does a check that was interrupted
    JOB_ATTEMPTS times. If a rejected model had no folder before, the files that were fetched are deleted.
    """
    model = BaseModel.begin_check(pk)
    if model is None:
        return
    if model.check_attempt > settings.JOB_ATTEMPTS:
        model.reject(f"Its check was interrupted {settings.JOB_ATTEMPTS} times: register it again.")
        return
    was_there = model.folder.is_dir()
    with signs_of_life(model):
        try:
            fetch_base_model(model)
            if model.check_goes_on():
                model.inspect()
        except Exception as error:  # noqa: BLE001 - the boundary of the task; each is written to the row or the log
            give_up(model, error)
    if model.status == BaseModelStatus.REJECTED and not was_there:
        # The next model of this slug must not take these files for its own.
        shutil.rmtree(model.folder, ignore_errors=True)


def give_up(model: BaseModel, error: Exception) -> None:
    """Reject the model with the error as the reason, unless another attempt has taken its check over.

    An unexpected error is logged, too.
    """
    if not isinstance(error, EXPECTED):
        log.exception("The check of %s failed.", model)
    if model.check_goes_on():
        reason = (
            "It took over a day." if isinstance(error, SoftTimeLimitExceeded) else str(error) or type(error).__name__
        )
        made = f"The checkpoint of {model.made_of} cannot be created: {reason}"
        model.reject(made if model.made_of else reason)


@contextmanager
def signs_of_life(model: BaseModel) -> Iterator[None]:
    """Context manager that records a heartbeat of this check every HEARTBEAT_S seconds.

    A thread does so until the block ends.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(settings.HEARTBEAT_S):
            try:
                model.check_goes_on()
            finally:
                connection.close()

    thread = threading.Thread(target=beat, name="check of a base model", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
