"""The names of training methods, as their authors write them. Pure."""

from __future__ import annotations

METHOD_NAMES = {
    "lora": "LoRA",
    "qlora": "QLoRA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "galore": "GaLore",
    "full": "full fine-tuning",
    "dpo": "DPO",
    "kto": "KTO",
    "orpo": "ORPO",
}


def method_name(method: str) -> str:
    """Return a training method as its authors write it, such as QLoRA; one that is not known as it is."""
    return METHOD_NAMES.get(method, method)
