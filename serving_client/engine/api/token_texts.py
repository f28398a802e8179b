"""Texts of single tokens, and the log-probabilities that are shown with them, as vLLM writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from serving_client.engine.batching.detokenizer import Decoder
from serving_client.engine.batching.logprobs import TokenLogprobs

# JSON has no infinity.
LOWEST = -9999.0
MOST_TEXTS = 2**16
Json = dict[str, Any]


class TokenTexts:
    """The text of each single token, `of`, and the log-probabilities of answers and prompts with these texts.

    A token that is only a part of a character has the text U+FFFD.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.of = lru_cache(MOST_TEXTS)(lambda token: decoder.decode([token], skip_special_tokens=False))

    def completion_logprobs(self, unscored: Sequence[int], entries: Sequence[TokenLogprobs], offset: int) -> Json:
        """Return the `logprobs` of a completion: the tokens `unscored` with null, then those of `entries`.

        `offset` is the position, in characters, at which the first token's text begins.
        """
        tokens = [*map(self.of, unscored), *(self.of(entry.token) for entry in entries)]
        nothing: list[None] = [None] * len(unscored)
        offsets = []
        for text in tokens:
            offsets.append(offset)
            offset += len(text)
        return {
            "text_offset": offsets,
            "token_logprobs": [*nothing, *(bounded(entry.logprob) for entry in entries)],
            "tokens": tokens,
            "top_logprobs": [*nothing, *map(self._by_text, entries)],
        }

    def chat_logprobs(self, entries: Iterable[TokenLogprobs]) -> Json:
        """Return the `logprobs` of a chat completion: for each of `entries` its token and the most likely ones."""
        content = [
            {
                **self._token(entry.token, entry.logprob),
                "top_logprobs": [self._token(token, logprob) for token, logprob in entry.top],
            }
            for entry in entries
        ]
        return {"content": content}

    def prompt_logprobs(self, entries: Sequence[TokenLogprobs]) -> list[Json | None]:
        """Return `prompt_logprobs`: null for the first token, then an object by token id for each of `entries`."""
        return [None, *map(self._by_id, entries)]

    def _token(self, token: int, logprob: float) -> Json:
        text = self.of(token)
        return {"token": text, "logprob": bounded(logprob), "bytes": list(text.encode())}

    def _by_text(self, entry: TokenLogprobs) -> dict[str, float]:
        """Map the texts of the token and of the most likely ones; of two with one text the likelier counts."""
        likely = ((self.of(token), bounded(logprob)) for token, logprob in reversed(entry.top))
        return {self.of(entry.token): bounded(entry.logprob), **dict(likely)}

    def _by_id(self, entry: TokenLogprobs) -> Json:
        ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(entry.top, start=1)}
        all_of_them = {entry.token: (entry.logprob, entry.rank), **ranked}
        return {
            str(token): {"logprob": bounded(logprob), "rank": rank, "decoded_token": self.of(token)}
            for token, (logprob, rank) in all_of_them.items()
        }


def bounded(logprob: float) -> float:
    """Return the log-probability, or LOWEST if it is lower: JSON has no infinity."""
    return max(logprob, LOWEST)
