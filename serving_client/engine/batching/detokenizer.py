"""Incremental decoding of tokens into text, without incomplete characters or parts of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

UNFINISHED = "\ufffd"  # what a decoder writes for the first bytes of a character


class Decoder(Protocol):
    """The one method of `tokenizers.Tokenizer` that is used here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of the tokens."""


class TextStream:
    """Decoded text of one answer: `add` tokens, and `take` the text that may be sent.

    A possible start of one of the stop strings is held back until it is known to be none.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._decoder = decoder
        # The tail of the prompt decides whether the first token begins with a space.
        self._tokens = list(prompt[-6:])
        self._shown_from = 0
        self._read_to = len(self._tokens)
        self._stops = stops
        self._held_back = max((len(stop) for stop in stops), default=1) - 1
        self._taken = 0
        self.text = ""

    def add(self, token: int) -> str | None:
        """Add a token. If the text now holds a stop string, cut it before the first one and return that; else None."""
        self._tokens.append(token)
        piece = self._new_text()
        if piece.endswith(UNFINISHED):
            return None
        return self._append(piece)

    def finish(self) -> None:
        """Release the text that was held back as the possible start of a character or a stop string."""
        self._append(self._new_text())
        self._held_back = 0

    def take(self) -> str:
        """Return the text that may be sent and was not yet taken."""
        end = max(self._taken, len(self.text) - self._held_back)
        text = self.text[self._taken : end]
        self._taken = end
        return text

    def _new_text(self) -> str:
        known = self._decoder.decode(self._tokens[self._shown_from : self._read_to])
        return self._decoder.decode(self._tokens[self._shown_from :])[len(known) :]

    def _append(self, piece: str) -> str | None:
        if piece:
            self._shown_from, self._read_to = self._read_to, len(self._tokens)
        searched_from = max(0, len(self.text) - self._held_back)
        self.text += piece
        return self._cut(searched_from)

    def _cut(self, searched_from: int) -> str | None:
        hits = [(self.text.find(stop, searched_from), stop) for stop in self._stops]
        first_hit = min((hit for hit in hits if hit[0] >= 0), default=None)
        if first_hit is None:
            return None
        self.text, self._held_back = self.text[: first_hit[0]], 0
        return first_hit[1]
