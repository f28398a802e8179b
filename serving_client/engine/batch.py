"""The running batch: one forward of the base model a step for all requests, whatever their adapters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from serving_client.engine.adapter import ModuleShapes
from serving_client.engine.errors import NOT_FINITE
from serving_client.engine.kv_cache import RowCache
from serving_client.engine.lora import ResidentAdapters, wrap_linears
from serving_client.engine.sampling import choose_tokens
from serving_client.engine.sequence import Sequence


class RunningBatch:
    """Requests that hold a row of the cache. Not thread-safe: belongs to the engine's thread."""

    def __init__(self, model: PreTrainedModel, *, max_loras: int, ends: frozenset[int]) -> None:
        self._model = model
        self._device = model.device
        self._ends = ends
        self._modules = wrap_linears(model)
        self._cache = RowCache(model.config.get_text_config().num_hidden_layers)
        self.residents = ResidentAdapters(self._modules, max_loras)
        self.rows: list[Sequence] = []

    @property
    def module_shapes(self) -> ModuleShapes:
        """Name -> (in, out) of the modules that take adapters."""
        return {name: (module.in_features, module.out_features) for name, module in self._modules.items()}

    def join(self, sequences: list[Sequence]) -> None:
        """Reads the prompts in one forward and chooses their first tokens. The adapters must be resident."""
        lengths = torch.tensor([len(sequence.prompt) for sequence in sequences])
        longest = int(lengths.max())
        self._cache.start(len(self.rows), len(sequences), longest)
        self.rows += sequences
        # Padding stands on the right: no token looks at it, and the row's own tokens overwrite its cache later.
        tokens = self._here([s.prompt + [0] * (longest - len(s.prompt)) for s in sequences])
        ends, which = torch.unique(lengths - 1, return_inverse=True)
        places = torch.arange(longest, device=self._device)
        logits = self._forward(sequences, tokens, places[None], None, ends.to(self._device))
        self._choose(sequences, logits[torch.arange(len(sequences)), which])

    def step(self) -> None:
        """Adds one token to every row."""
        length = max(sequence.position for sequence in self.rows) + 1
        positions = self._here([sequence.position for sequence in self.rows])
        self._cache.extend(positions, length)
        visible = torch.arange(length, device=self._device) <= positions[:, None]
        tokens = self._here([[sequence.last_token] for sequence in self.rows])
        logits = self._forward(self.rows, tokens, positions[:, None], visible[:, None, None, :], 1)
        self._choose(self.rows, logits[:, -1])

    def _forward(
        self,
        sequences: list[Sequence],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor | None,
        keep: torch.Tensor | int,
    ) -> torch.Tensor:
        self.residents.route([sequence.adapter for sequence in sequences])
        answer = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=visible,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = answer.logits.float()
        return logits

    def _here(self, numbers: list[Any]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._device)

    def _choose(self, sequences: list[Sequence], logits: torch.Tensor) -> None:
        finite = logits.isfinite().all(dim=-1)
        for sequence in (s for s, is_finite in zip(sequences, finite.tolist(), strict=True) if not is_finite):
            self._cache.clear(self.rows.index(sequence))
            sequence.fail(NOT_FINITE)
        good = [sequence for sequence in sequences if not sequence.is_finished]
        tokens = choose_tokens(logits[finite], [s.params for s in good], [s.generator for s in good])
        for sequence, token in zip(good, tokens, strict=True):
            sequence.add(token, self._ends)

    def drop_finished(self) -> None:
        """Frees the rows of requests that have ended or that nobody waits for."""
        for row in reversed(range(len(self.rows))):
            if self.rows[row].is_finished or self.rows[row].is_cancelled:
                self._free(row)
        if not self.rows:
            self._cache.release()

    def _free(self, row: int) -> None:
        last = self.rows.pop()
        self._cache.remove(row, len(self.rows))
        if row < len(self.rows):
            self.rows[row] = last
