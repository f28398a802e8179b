"""A running request: its prompt, its tokens, its text, and the callback that receives its deltas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serving_client.engine.adapters.adapter import Adapter
from serving_client.engine.batching.detokenizer import Decoder, TextStream
from serving_client.engine.batching.grammar import BadGrammar, Grammar
from serving_client.engine.batching.logprobs import TokenLogprobs
from serving_client.engine.batching.sampling import SamplingParams


@dataclass(frozen=True)
class Delta:
    """The text and tokens that one step added to an answer. The last one has a finish reason or a failure.

    The finish reason is `stop` or `length`; `stop_reason` is the stop string or the id of the stop token that the
    request named and that ended the answer, else None. `index` is the answer's number among those of its request. The
    first delta also has the prompt's log-probabilities, of all its tokens but the first, if they are wanted.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    failure: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    index: int = 0

    @property
    def is_last(self) -> bool:
        """Return True if the sequence has ended or failed."""
        return self.finish_reason is not None or self.failure is not None


class Sequence:
    """One answer in the engine: its request, its tokens so far and its text.

    `tell` is called with every delta, in the engine's thread. `adapter` is None for the base model, `grammar` None for
    free text; `index` is the answer's number among those of its request.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        adapter: Adapter | None,
        decoder: Decoder,
        tell: Callable[[Delta], None],
        index: int = 0,
        grammar: Grammar | None = None,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.adapter = adapter
        self.generator = params.generator()
        self.index = index
        self.grammar = grammar
        self.tokens: list[int] = []
        self.prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self.steps_without_room = 0
        self.is_cancelled = False
        self.is_finished = False
        self._text = TextStream(decoder, prompt, params.stop)
        self._tell = tell

    @property
    def last_token(self) -> int:
        """The newest token of the answer, which the next decoding step feeds to the model.

        Raises IndexError before the first one: the prompt is not part of it.
        """
        return self.tokens[-1]

    @property
    def position(self) -> int:
        """The position of the last token, counted from the start of the prompt."""
        return len(self.prompt) + len(self.tokens) - 1

    @property
    def needs_logits(self) -> bool:
        """True if a grammar, sampling or a bias may choose another than the likeliest token, or logprobs are wanted."""
        has_wishes = self.grammar is not None or self.params.logprobs is not None
        return has_wishes or not self.params.takes_most_likely

    def needs_more_than(self, tokens: int) -> bool:
        """Return True if max_tokens allows more than this many further tokens."""
        return len(self.tokens) + tokens < self.params.max_tokens

    def cancel(self) -> None:
        """Mark the request as cancelled: the engine drops it before its next step."""
        self.is_cancelled = True

    def add(self, token: int, ends: frozenset[int], logprobs: tuple[TokenLogprobs, ...] = ()) -> None:
        """Append the next token and pass its delta to `tell`; `ends` are the model's end-of-text tokens.

        `logprobs` has the token's own entry, or none. The sequence is finished after a stop string, an end-of-text
        token or max_tokens, and fails if its grammar cannot go on.
        """
        self.tokens.append(token)
        try:
            finish_reason, stop_reason = self._verdict(token, ends)
        except BadGrammar as error:
            self.fail(f"The form of the answer cannot be kept up: {error}")
            return
        if finish_reason:
            self._text.finish()
            self.is_finished = True
        of_prompt, self.prompt_logprobs = self.prompt_logprobs, ()
        text = self._text.take()
        self._tell(Delta(text, (token,), finish_reason, stop_reason, None, logprobs, of_prompt, self.index))

    def _verdict(self, token: int, ends: frozenset[int]) -> tuple[str | None, str | int | None]:
        # A grammar allows an end only where it is one.
        if token in ends and (self.grammar or not self.params.ignore_eos):
            return "stop", None
        if token in self.params.stop_token_ids:
            return "stop", token
        if stop := self._text.add(token):
            return "stop", stop
        if self.grammar:
            self.grammar.take(token)
            if self.grammar.is_over:
                return "stop", None
        return ("length" if len(self.tokens) >= self.params.max_tokens else None), None

    def fail(self, reason: str) -> None:
        """Finish the answer and pass a last delta to `tell`, with the reason as its failure."""
        self.is_finished = True
        self._tell(Delta(failure=reason, index=self.index))
