"""Words of the field that pages use: how each is recognised in a text, and the sentence that explains it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word of the field: its title, a regular expression of its forms, and its explanation without a full stop."""

    name: str
    pattern: str
    meaning: str

    def stands_in(self, text: str) -> bool:
        """Return True if the text uses the word, in any case of letters."""
        return re.search(rf"\b(?:{self.pattern})\b", text, re.IGNORECASE) is not None


WORDS = {
    "arm": Word(
        "Arm",
        "arms?",
        "the group of a rollout that a user is in, and stays in: candidate, control, or the rest, who get the stable "
        "version without being measured",
    ),
    "control": Word(
        "Control",
        r"(?<!and )control(?! tokens?| planes?| loops?)",
        "users who get the stable version and are compared with those who get the candidate",
    ),
    "guardrail": Word(
        "Guardrail", "guardrails?", "a metric that rolls the candidate back, or pauses it, once it is clearly worse"
    ),
    "margin": Word("Margin", "margins?", "how much worse than the control the candidate may be"),
    "shadow": Word(
        "Shadow", "shadows?", "the candidate answers copies of requests; its answers are compared, and nobody gets them"
    ),
    "drift": Word(
        "Drift", "drifts?", "a replica drifts while it does not answer, or lacks a version that an alias serves"
    ),
    "slot": Word("Slot", "slots?", "room for one adapter in the memory of a replica"),
    "cold_load": Word("Cold load", "cold loads?", "a version was loaded because a request asked for it"),
    "nats": Word(
        "Nat", "nats?", "the unit of the loss for each token; below 0 is better than what it is compared with"
    ),
    "exact_match": Word("Exact match", "exact match", "the share of answers that are the expected text, word for word"),
    "token_f1": Word(
        "Token F1", "token F1", "how much of the expected words the answers have, from 0 (none) to 1 (the same words)"
    ),
    "forgetting": Word(
        "Forgetting", "forgetting", "how much the loss on general text rose over the base model's; below 0: it fell"
    ),
    "worth": Word(
        "Worth", "worth", "what the ranks of a plan add up to by the signals that the analysis measured in the modules"
    ),
    "sensitivity": Word("Sensitivity", "sensitivity", "how much a module matters for the task"),
    "divergence": Word(
        "Divergence", "divergence", "how far a module's activations on the task are from those on other text"
    ),
    "broken_glass": Word(
        "Glass broken",
        "glass broken|broken glass|break the glass",
        "a change in an emergency, allowed before anybody signed; somebody else must review it within 24 hours",
    ),
}
