"""Running batch: one forward pass of the base model a step for all requests, whatever their adapters."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from serving_client.engine.adapters.adapter import ModuleShapes
from serving_client.engine.adapters.lora import MOST_TOKENS, ResidentAdapters, SlotRows, row_kernel, wrap_linears
from serving_client.engine.batching.cuda_graphs import FixedSteps, Inputs, NotRecordable, Shape
from serving_client.engine.batching.grammar import BadGrammar
from serving_client.engine.batching.kv_cache import RowCache
from serving_client.engine.batching.logprobs import TokenLogprobs, logprobs_of
from serving_client.engine.batching.sampling import choose_tokens
from serving_client.engine.batching.sequence import Sequence
from serving_client.engine.batching.step import PendingStep, Result
from serving_client.engine.errors import NOT_FINITE

if TYPE_CHECKING:
    from serving_client.engine.batching.fused_model import FusedModel

log = logging.getLogger(__name__)


class RunningBatch:
    """The requests that hold a row of the KV cache, in `rows`. Not thread-safe: used by the engine's thread alone.

    At most `max_loras` different adapters can be in it; `ends` are the ids of the tokens that end an answer.
    """

    def __init__(self, model: PreTrainedModel, *, max_loras: int, ends: frozenset[int]) -> None:
        self._model = model
        self.device = model.device
        self._ends = ends
        self._modules = wrap_linears(model)
        self._cache = RowCache(model.config.get_text_config().num_hidden_layers)
        self.residents = ResidentAdapters(self._modules, max_loras)
        self._kernel = row_kernel(self.device)
        self._fixed: FixedSteps | None = FixedSteps(self._in_fixed_shape, self.device)
        self._fused = _fused_model(model) if self._kernel else None
        self._ahead: PendingStep | None = None
        self.rows: list[Sequence] = []

    @property
    def module_shapes(self) -> ModuleShapes:
        """Return name -> (in, out) of the modules that take adapters."""
        return {name: (module.in_features, module.out_features) for name, module in self._modules.items()}

    def join(self, sequences: list[Sequence]) -> None:
        """Add sequences: compute their prompts in one forward pass and sample the first token of each.

        Their adapters must be resident. A sequence whose logits hold NaN or infinity fails.
        """
        self._settle()
        lengths = torch.tensor([len(sequence.prompt) for sequence in sequences])
        longest = int(lengths.max())
        self._cache.start(len(self.rows), len(sequences), longest)
        self.rows += sequences
        # Padding is on the right: no token attends to it, and the row's own tokens overwrite its cache later.
        tokens = self._here([s.prompt + [0] * (longest - len(s.prompt)) for s in sequences])
        places = torch.arange(longest, device=self.device)
        self.residents.route([sequence.adapter for sequence in sequences])
        if any(sequence.params.prompt_logprobs is not None for sequence in sequences):
            which = lengths - 1
            logits = self._forward(tokens, places[None], None, places)
            read_prompts(sequences, logits)
        else:
            ends, which = torch.unique(lengths - 1, return_inverse=True)
            logits = self._forward(tokens, places[None], None, ends.to(self.device))
        logits = logits[torch.arange(len(sequences)), which]
        self._choose(PendingStep(sequences, Result.of(logits)))

    def step(self) -> None:
        """Add one token to every row; where possible, a GPU's next pass is queued before the tokens are read.

        A sequence whose logits hold NaN or infinity fails.
        """
        pending = self._ahead or PendingStep(self.rows, self._result())
        self._ahead = self._run_ahead(pending)
        self._choose(pending)

    def _settle(self) -> None:
        """Add the tokens of the step that runs ahead."""
        pending, self._ahead = self._ahead, None
        if pending:
            self._choose(pending)

    def _run_ahead(self, pending: PendingStep) -> PendingStep | None:
        """Queue the step after the pending one, so that the GPU does not wait until its tokens are told.

        None unless every row takes the most likely token, reads no logits, and needs one more after the pending one.
        """
        if not self._fixed or pending.rows != self.rows:
            return None
        if not all(not s.needs_logits and s.needs_more_than(1) and not s.is_finished for s in self.rows):
            return None
        result = self._fixed_result(pending.tokens, [sequence.position + 1 for sequence in self.rows])
        return PendingStep(self.rows, result) if result else None

    def _result(self) -> Result:
        tokens = [sequence.last_token for sequence in self.rows]
        result = self._fixed_result(tokens, [sequence.position for sequence in self.rows])
        return result or Result.of(self._step())

    def _fixed_result(self, tokens: list[int] | torch.Tensor, positions: list[int]) -> Result | None:
        """Run a step of fixed shape; None where the model or the number of rows does not allow one."""
        if not self._fixed or not runs_in_fixed_shapes(self.device, len(self.rows)):
            return None
        try:
            return self._fixed_step(self._fixed, tokens, positions)
        except NotRecordable as error:
            log.warning("The steps of this model are computed one by one, which takes longer: %s", error)
            self._fixed = None
            return None

    def _step(self) -> torch.Tensor:
        length = max(sequence.position for sequence in self.rows) + 1
        positions = self._here([sequence.position for sequence in self.rows])
        tokens = self._here([sequence.last_token for sequence in self.rows])
        self.residents.route([sequence.adapter for sequence in self.rows])
        return self._add_token(tokens, positions, length)

    def _fixed_step(self, steps: FixedSteps, tokens: list[int] | torch.Tensor, positions: list[int]) -> Result:
        slots = self.residents.slots_of([sequence.adapter for sequence in self.rows])
        shape = Shape(len(self.rows), max(positions) + 1, max(slots) + 1).padded()
        self._cache.reserve(shape.rows, shape.length)
        return steps.run(shape, Inputs(tokens, positions, slots), (self._cache.moves, self.residents.moves))

    def _in_fixed_shape(self, inputs: torch.Tensor, shape: Shape) -> Result:
        tokens, positions, slots = inputs
        if self._fused:
            used_slots = slots if shape.slots else None
            return Result.of(self._fused.logits(self._cache, tokens, positions, used_slots, shape.length))
        used = SlotRows(slice(0, shape.slots), slots, kernel=self._kernel)
        self.residents.use(used if shape.slots else None)
        return Result.of(self._add_token(tokens, positions, shape.length))

    def _add_token(self, tokens: torch.Tensor, positions: torch.Tensor, length: int) -> torch.Tensor:
        """Run a step on the last tokens (rows,) at their positions; return logits (rows, vocabulary)."""
        self._cache.extend(positions, length)
        hidden = torch.arange(length, device=self.device) > positions[:, None]
        # A float mask, because attention would convert a boolean one in every layer.
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=self.device).masked_fill_(
            hidden, float("-inf")
        )
        return self._forward(tokens[:, None], positions[:, None], mask[:, None, None, :], 1)[:, -1]

    def _forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        logit_positions: torch.Tensor | int,
    ) -> torch.Tensor:
        answer = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=logit_positions,
        )
        logits: torch.Tensor = answer.logits.float()
        return logits

    def _here(self, numbers: list[Any]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.device)

    def _choose(self, step: PendingStep) -> None:
        likely, finite = step.read()
        chosen: dict[int, int] = {}
        for row, sequence in enumerate(step.rows):
            if sequence.is_finished or sequence.is_cancelled:
                continue
            if not finite[row]:
                self._cache.clear(self.rows.index(sequence))
                sequence.fail(NOT_FINITE)
            else:
                chosen[row] = likely[row]
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        if reading := [row for row in chosen if step.rows[row].needs_logits]:
            sequences = [step.rows[row] for row in reading]
            tokens, entries = tokens_from(sequences, step.logits[self._here(reading)])
            chosen.update(zip(reading, tokens, strict=True))
            logprobs = {reading[place]: entry for place, entry in entries.items()}
        for row, token in chosen.items():
            if not step.rows[row].is_finished:
                step.rows[row].add(token, self._ends, logprobs.get(row, ()))

    def drop_finished(self) -> None:
        """Free the rows of finished and cancelled requests; on a CPU also the cache's memory once no row is left."""
        for row in reversed(range(len(self.rows))):
            if self.rows[row].is_finished or self.rows[row].is_cancelled:
                self._free(row)
        # Recorded steps hold addresses of the cache: recording them again costs more than keeping the memory.
        if not self.rows and self.device.type != "cuda":
            self._cache.release()

    def _free(self, row: int) -> None:
        last = self.rows.pop()
        self._cache.remove(row, len(self.rows))
        if row < len(self.rows):
            self.rows[row] = last


def _fused_model(model: PreTrainedModel) -> FusedModel | None:
    from serving_client.engine.batching.fused_model import fused

    return fused(model)


def tokens_from(
    sequences: list[Sequence], logits: torch.Tensor
) -> tuple[list[int], dict[int, tuple[TokenLogprobs, ...]]]:
    """Choose a token for each row; return them, and by row the log-probabilities of those rows that want them.

    The logits (rows, vocabulary) are modified in place. A sequence whose grammar allows no token fails.
    """
    wanted = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
    own_logits = logits[wanted] if wanted else logits
    forbid(sequences, logits)
    tokens = choose_tokens(logits, [s.params for s in sequences], [s.generator for s in sequences])
    return tokens, step_logprobs(own_logits, tokens, sequences, wanted) if wanted else {}


def forbid(sequences: list[Sequence], logits: torch.Tensor) -> None:
    """Set the logits of the tokens that a sequence's grammar forbids to -inf, in place.

    A sequence whose grammar cannot go on fails.
    """
    for row, sequence in enumerate(sequences):
        if sequence.grammar is None:
            continue
        try:
            forbidden = sequence.grammar.forbidden(logits.shape[-1])
        except BadGrammar as error:
            sequence.fail(f"The form of the answer cannot be kept up: {error}")
        else:
            logits[row].masked_fill_(forbidden.to(logits.device), float("-inf"))


def read_prompts(sequences: list[Sequence], logits: torch.Tensor) -> None:
    """Store the prompt's log-probabilities in each sequence that wants them.

    The logits are (rows, positions, vocabulary).
    """
    for row, sequence in enumerate(sequences):
        if (count := sequence.params.prompt_logprobs) is not None:
            sequence.prompt_logprobs = tuple(logprobs_of(logits[row], sequence.prompt[1:], count))


def step_logprobs(
    logits: torch.Tensor, tokens: list[int], sequences: list[Sequence], rows: list[int]
) -> dict[int, tuple[TokenLogprobs, ...]]:
    """Return by row the log-probability of its token and of the most likely ones, as many as its request wants.

    `rows` are the wanted ones, and `logits` (len(rows), vocabulary) holds these alone; `tokens` has one for every row.
    """
    counts = [sequences[row].params.logprobs or 0 for row in rows]
    entries = logprobs_of(logits, [tokens[row] for row in rows], max(counts))
    return {row: (replace(e, top=e.top[:count]),) for row, e, count in zip(rows, entries, counts, strict=True)}


def runs_in_fixed_shapes(device: torch.device, rows: int) -> bool:
    """Return True on a GPU with at most MOST_TOKENS rows: kernel launches dominate, and replaying a step is faster."""
    return device.type == "cuda" and rows <= MOST_TOKENS
