"""QLoRA: trains a LoRA on a 4-bit base (NF4, double quantisation, arXiv 2305.14314), on a GPU or a CPU.

Command: `python -m training.recipes.qlora RUN_JSON`. The adapter is measured on the 4-bit base that it was trained on
(`loss_after`) and on the 16-bit base that will serve it (`loss_served`).
"""

from __future__ import annotations

import sys
from typing import Any

from training.recipes.entrypoint import Cancel, RunEvents, program
from training.recipes.lora import lora_config
from training.recipes.run_file import Run


def main(arguments: list[str]) -> int:
    """Run the recipe with the command line's run file; return the exit status."""
    return program(arguments, train, uses_bitsandbytes=True)


def train(run: Run, events: RunEvents, cancel: Cancel) -> None:
    """Train the run with QLoRA and write its output, a LoRA. Raises BadInput and Diverged."""
    from training.recipes.output.adapter_output import save_adapter, trainable
    from training.recipes.output.served_loss import loss_as_served
    from training.recipes.training_loop import trainer

    def keep(trained: trainer.Trained, run: Run) -> trainer.Facts:
        save_adapter(trained.model, run, trained.weights)
        return {"parameters": trainable(trained.model), "loss_served": loss_as_served(trained, run)}

    def adapt(model: Any, run: Run, material: Any) -> tuple[Any, Any]:
        return model, lora_config(run)

    trainer.train(run, events, cancel, trainer.Method("qlora", keep, load=load_in_4_bits, adapt=adapt))


def load_in_4_bits(run: Run) -> Any:
    """Load the run's base model with linear weights in NF4; embeddings, norms and the head are not quantised."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from training.lm.base_model import on_gpu

    dtype = torch.bfloat16 if on_gpu() else torch.float32
    quantised = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if on_gpu() else torch.uint8,  # FSDP shards only tensors of one dtype
    )
    device = f"cuda:{torch.cuda.current_device()}" if on_gpu() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        str(run.base_model), dtype=dtype, quantization_config=quantised, device_map={"": device}
    )
    keep_trainable_on_cpu(model)
    return model


def keep_trainable_on_cpu(model: Any) -> None:
    """Stop bitsandbytes from repacking the model's weights in evaluations on CPUs with AVX512-BF16.

    Repacked weights have no backward pass.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
