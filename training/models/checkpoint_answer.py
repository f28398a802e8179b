"""Stored answers of a run's checkpoints to the run's named prompts."""

from __future__ import annotations

from typing import Any

from django.db import models

from adapterhub.core.errors import Invalid

MOST = 8
LONGEST_NAME, LONGEST_PROMPT = 60, 2000

Prompts = dict[str, str]


class CheckpointAnswer(models.Model):
    """An answer to a named prompt at a step of a run; step 0 is the base model, before the first step."""

    run = models.ForeignKey("training.TrainingRun", models.PROTECT, related_name="answers")
    step = models.PositiveIntegerField()
    name = models.CharField(max_length=LONGEST_NAME)
    answer = models.TextField()

    class Meta:
        ordering = ["name", "step"]
        constraints = [models.UniqueConstraint(fields=["run", "step", "name"], name="one_answer_per_checkpoint")]

    def __str__(self) -> str:
        return f"{self.name} at step {self.step}"

    @classmethod
    def keep(cls, run: Any, step: int, answers: dict[str, str]) -> None:
        """Store the answers of a step, by name of the prompt; answers that are stored already are replaced.

        An attempt that was resumed from a checkpoint answers again.
        """
        for name, answer in answers.items():
            fields = {"answer": answer.replace("\x00", "")}
            cls.objects.update_or_create(run=run, step=step, name=name, defaults=fields)


def checked(prompts: Prompts, *, sharded: bool) -> Prompts:
    """Return the prompts (name -> text) unchanged, which may be none.

    Raises Invalid for more than MOST, for a name or text that is blank or too long, and for any prompt of a sharded
    run.
    """
    if prompts and sharded:
        raise wrong(
            "A sharded run cannot answer prompts, as no device holds the whole model: leave out prompts or sharded."
        )
    if len(prompts) > MOST:
        raise wrong(f"Give at most {MOST} prompts, not {len(prompts)}.")
    for name, prompt in prompts.items():
        if not 0 < len(name.strip()) <= LONGEST_NAME:
            raise wrong(f"A prompt's name must have 1 to {LONGEST_NAME} characters, not {len(name)}.")
        if not isinstance(prompt, str) or not 0 < len(prompt.strip()) <= LONGEST_PROMPT:
            raise wrong(f"The prompt {name} must be a string of 1 to {LONGEST_PROMPT} characters.")
    return prompts


def wrong(message: str) -> Invalid:
    """Return, without raising it, the error of invalid prompts."""
    return Invalid(message, field="prompts", code="bad_prompts")
