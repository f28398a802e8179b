"""PEFT must give each module exactly the planned rank and one scale, also after saving."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from tests.tiny_model import make_model
from training.tars.allocation import RankPattern, patterns
from training.tars.analysis import linear_modules


def config_of(pattern: RankPattern) -> LoraConfig:
    return LoraConfig(
        r=pattern.r,
        lora_alpha=pattern.lora_alpha,
        rank_pattern=pattern.rank_pattern,
        alpha_pattern=pattern.alpha_pattern,
        target_modules=pattern.target_modules,
        task_type="CAUSAL_LM",
    )


def ranks_and_scales(model: PeftModel) -> dict[str, tuple[int, float]]:
    return {
        name.removeprefix("base_model.model."): (module.lora_A["default"].weight.shape[0], module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def test_planned_ranks_survive_saving(tmp_path: Path) -> None:
    names = list(linear_modules(make_model(layers=12)))
    # Layers 1 and 10 to 11 differ on purpose; one module is left out.
    ranks = {name: 2 + place % 5 for place, name in enumerate(names)} | {names[3]: 0}
    expected = {name: (rank, 2.0) for name, rank in ranks.items() if rank}
    model = get_peft_model(make_model(layers=12), config_of(patterns(ranks, scale=2.0)))
    assert ranks_and_scales(model) == expected
    model.save_pretrained(str(tmp_path))
    assert ranks_and_scales(PeftModel.from_pretrained(make_model(layers=12), str(tmp_path))) == expected
