"""Loss weights between 0 and 1: an answer of weight 0.5 counts half. Rows of weights 0 and 1 alone do not need this."""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer  # type: ignore[attr-defined]
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad

COLUMN = "loss_weights"


class WeightedCollator(DataCollatorForLanguageModeling):
    """TRL's collator, which also adds each token's loss weight to the batch, padded like the labels."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of the examples, with their weights padded and joined as the labels are."""
        batch = super().torch_call(examples)
        weights = [torch.tensor(example[COLUMN]) for example in examples]
        weights = [torch.cat(weights)] if self.padding_free else weights
        return {**batch, COLUMN: pad(weights, padding_value=0, padding_side="right")}


class WeightedTrainer(SFTTrainer):
    """TRL's SFTTrainer with a loss that multiplies each token's log probability by its weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # With padding_free TRL takes no collator as an argument; ours does all that its own does.
        tokenizer: Any = self.processing_class
        self.data_collator = WeightedCollator(tokenizer.pad_token_id, padding_free=self.padding_free)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss of the batch, with each token's log probability multiplied by its weight.

        The weights are removed from `inputs`.
        """
        weights = inputs.pop(COLUMN)[:, 1:]

        def weigh(**fields: Any) -> Any:
            outputs = model(**fields)
            outputs.log_probs = outputs.log_probs * weights[:, : outputs.log_probs.shape[-1]]
            return outputs

        return super().compute_loss(weigh, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        weights = [batch[COLUMN][:, 1:] * batch["labels"][:, 1:].ne(-100) for batch in batch_samples]
        total = torch.stack([each.sum() for each in weights]).sum().to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total
