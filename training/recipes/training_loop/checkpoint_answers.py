"""Answers of the base model and of each checkpoint to named prompts: a loss does not show how a model speaks."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from training.lm.events import Events
from training.recipes.compare import Question, answer_of

NEW_TOKENS = 48


class Answering(TrainerCallback):
    """Callback that answers prompts and writes them as `answers` events at the start and at each checkpoint.

    An event is {step, answers: {name: text}}. Decoding is greedy and uses no random state, so a run is the same with
    and without prompts. After a crash between a checkpoint and its answers, the next attempt answers at its start. It
    does not work for models in shards.
    """

    def __init__(self, prompts: dict[str, Question], tokenizer: Any, events: Events, state: PartialState) -> None:
        self.prompts, self.tokenizer, self.events, self.state = prompts, tokenizer, events, state

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Answer the prompts before the first step."""
        self.answer(state.global_step, model)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Answer the prompts at a checkpoint."""
        self.answer(state.global_step, model)

    def answer(self, step: int, model: Any) -> None:
        """Generate the model's answers in the first process and write them as an event; the other processes wait.

        The model stays in training mode if it was in it.
        """
        if self.state.is_main_process:
            was_training = model.training
            with torch.no_grad():
                answers = {name: self.continued(model, prompt) for name, prompt in self.prompts.items()}
            model.train(was_training)
            self.events.write("answers", step=step, answers=answers)
        self.state.wait_for_everyone()

    def continued(self, model: Any, prompt: Question) -> str:
        """Return the model's greedy answer to the prompt, of at most NEW_TOKENS tokens."""
        return answer_of(lambda generate: generate(model), self.tokenizer, prompt, NEW_TOKENS)
