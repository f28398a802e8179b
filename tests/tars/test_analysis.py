"""The analysis as a whole and its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_model import make_model, make_tokenizer, save_base_model, sentences, write_jsonl
from training.lm.token_sequences import DataError
from training.tars import allocation
from training.tars.__main__ import main
from training.tars.analysis import NoLinearModules, analyze, linear_modules
from training.tars.config import AnalysisConfig
from training.tars.presets import BadSettings
from training.tars.sample import own_words
from training.tars.scores import spearman

CONFIG = AnalysisConfig(budget_value=4, rank_max=16, quantum=2, samples=12, max_length=32, probe_steps=3)


def analysis(rows: list[Any] | None = None, reference: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    config = AnalysisConfig(**{**CONFIG.__dict__, **changes})
    return analyze(make_model(), make_tokenizer(), rows or sentences(20), reference, config).as_dict()


def test_without_a_reference_the_score_is_the_sensitivity() -> None:
    plan = analysis(preset="seed")
    assert plan["divergence_used"] is False
    assert all(module["score"] == module["sensitivity"] > 0 for module in plan["modules"])


def test_with_a_reference_the_score_is_the_product() -> None:
    plan = analysis(preset="seed", reference=[{"text": "law law law article"}])
    assert plan["divergence_used"] is True
    for module in plan["modules"]:
        assert module["score"] == pytest.approx(module["sensitivity"] * module["divergence"])


@pytest.mark.parametrize("sensitivity", ["probe", "spectrum", "grad_norm", "output_shift"])
@pytest.mark.parametrize("divergence", ["none", "softmax_mean", "gaussian_diag"])
def test_every_signal_and_objective_can_be_chosen(sensitivity: str, divergence: str) -> None:
    objective = "concave" if sensitivity in ("probe", "spectrum") else "linear"
    plan = analysis(
        reference=sentences(12, seed=9),
        sensitivity=sensitivity,
        divergence=divergence,
        objective=objective,
        kinds="all",
        probe_steps=2,
        direction="target_base",
    )
    assert all(module["score"] >= 0 for module in plan["modules"])
    assert plan["divergence_used"] is (divergence != "none")
    assert 0 < plan["parameters"] <= plan["budget"]["parameters"]


def test_the_default_leaves_attention_out_and_brings_start_values_and_a_rate() -> None:
    plan = analyze(make_model(), make_tokenizer(), sentences(20), None, CONFIG)
    ranks = {module["name"]: module["rank"] for module in plan.modules}
    assert {name for name, rank in ranks.items() if rank == 0} == {name for name in ranks if "self_attn" in name}
    assert set(plan.init) == {name for name in ranks if "mlp" in name}
    for name, start in plan.init.items():
        torch.testing.assert_close(start @ start.T, torch.eye(len(start)) / 3, rtol=1e-3, atol=1e-4)
        assert start.shape[1] == next(module["shape"][1] for module in plan.modules if module["name"] == name)
    assert plan.learning_rate == min(plan.probes, key=lambda probe: probe["loss"])["rate"]
    assert plan.stability is not None


def test_no_rate_to_probe_and_no_text_are_named() -> None:
    with pytest.raises(BadSettings, match="probe_rates is empty"):
        analysis(probe_rates=())
    with pytest.raises(DataError, match="No row has a token to predict"):
        analysis(rows=[{"text": ""}])


def test_the_base_model_can_be_its_own_reference() -> None:
    own = own_words(make_model(), make_tokenizer(), replace(CONFIG, samples=6))
    assert len(own) == 6
    assert own == own_words(make_model(), make_tokenizer(), replace(CONFIG, samples=6))
    assert analysis(preset="seed", reference=own)["divergence_used"] is True


def test_the_plan_spends_the_budget_and_no_more() -> None:
    plan = analysis()
    spent = sum(allocation.cost(module["shape"]) * module["rank"] for module in plan["modules"])
    assert spent == plan["parameters"] <= plan["budget"]["parameters"]
    assert plan["budget"]["parameters"] - spent < 2 * 40
    assert not any("head" in module["name"] for module in plan["modules"])


@pytest.mark.parametrize("settings", [{"preset": "seed"}, {"sensitivity": "spectrum"}])
def test_batch_size_does_not_change_the_signals(settings: dict[str, str]) -> None:
    one, five = (analysis(batch_size=size, **settings)["modules"] for size in (1, 5))
    assert [m["score"] for m in one] == pytest.approx([m["score"] for m in five], rel=1e-3)


def test_the_stored_scores_give_the_same_plan_again() -> None:
    plan = json.loads(json.dumps(analysis()))
    assert allocation.reallocate(plan, "uniform_rank", CONFIG.budget_value) == plan


def test_a_few_sequences_are_no_sample() -> None:
    assert analysis(rows=sentences(4))["verdict"] == "sample_too_small"


def test_a_budget_near_a_bound_leaves_nothing_to_plan() -> None:
    plan = analysis(preset="seed", rank_max=8, budget_value=8)
    assert {module["rank"] for module in plan["modules"]} == {8}
    assert plan["verdict"] in ("uniform_as_good", "sample_too_small")


def test_a_model_without_a_wanted_module_is_named() -> None:
    with pytest.raises(NoLinearModules, match="No linear module is named 'w1'"):
        analysis(target_modules=("w1",))
    no_layers = torch.nn.Module()
    no_layers.get_output_embeddings = lambda: None
    with pytest.raises(NoLinearModules, match="target_modules is empty"):
        analysis(target_modules=())
    with pytest.raises(NoLinearModules, match="Module has no linear module"):
        linear_modules(no_layers)


def test_two_modules_with_one_weight_are_named() -> None:
    model = make_model()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(NoLinearModules, match="share one weight"):
        linear_modules(model)


def test_a_4_bit_base_scores_as_its_16_bit_form() -> None:
    """Wide enough that a block of 64 weights has a scale of its own."""
    rows, tokenizer = sentences(24), make_tokenizer()
    config = replace(CONFIG, preset="seed", samples=24)
    scores = []
    for model in (make_wide_model(), in_4_bits(make_wide_model())):
        scores.append([module["score"] for module in analyze(model, tokenizer, rows, None, config).modules])
    assert spearman(*scores) >= 0.99


def make_wide_model() -> Any:
    model = make_model(layers=4, hidden=64, inner=128).to(torch.bfloat16)
    # Layers of different weight, so that there is an order to keep.
    for place, layer in enumerate(model.model.layers):
        for parameter in layer.mlp.parameters():
            parameter.data.mul_(1 + 0.3 * place)
    return model


def in_4_bits(model: Any) -> Any:
    """Every linear module of the layers as NF4."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, module in linear_modules(model).items():
        packed = Linear4bit(
            module.in_features, module.out_features, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16
        )
        packed.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, packed.to("cpu"))
    return model


def test_uniform_needs_no_pass() -> None:
    plan = analysis(preset="uniform", budget_value=8)
    assert {module["rank"] for module in plan["modules"]} == {8}
    assert plan["rank_pattern"] == {}
    assert (plan["verdict"], plan["stability"]) == ("uniform_as_good", None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tars")
    return {
        "model": save_base_model(folder / "base"),
        "data": write_jsonl(folder / "data.jsonl", sentences(20)),
        "reference": write_jsonl(folder / "reference.jsonl", sentences(20, seed=9)),
    }


def command(files: dict[str, Path], out: Path, **changes: object) -> list[str]:
    flags: dict[str, object] = {
        **files,
        "budget": "uniform:4",
        "preset": "seed",
        "rank-min": 2,
        "rank-max": 16,
        "quantum": 2,
        "samples": 12,
        "max-length": 32,
        "threads": 1,
        "events": out.with_suffix(".events"),
        "out": out,
        **changes,
    }
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


def events_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_suffix(".events").read_text().splitlines()]


@pytest.mark.parametrize("preset", ["default", "seed", "uniform"])
def test_the_same_seed_writes_the_same_plan(
    files, tmp_path: Path, capsys: pytest.CaptureFixture[str], preset: str
) -> None:
    texts = []
    for name in ("one.json", "two.json"):
        picture = {"heat-map": tmp_path / "plan.svg", "probe-steps": 3}
        bounds = {} if preset == "seed" else {"rank-min": 0}
        assert main(command(files, tmp_path / name, preset=preset, **picture, **bounds)) == 0
        plan = json.loads((tmp_path / name).read_bytes())
        texts.append((tmp_path / name).read_text().replace(f'"seconds": {plan["seconds"]}', ""))
    assert texts[0] == texts[1]
    printed = " ".join(capsys.readouterr().out.split())
    assert "parameters" in printed
    assert ("Losses of the probe by learning rate: 0.002: " in printed) == (preset == "default")
    if preset == "default":
        assert f"The lowest is that of {plan['learning_rate']:g}" in printed
    assert (tmp_path / "plan.svg").read_text().count("<rect") == 1 + 14
    assert (tmp_path / "one.init.safetensors").exists() == (preset == "default")
    if preset == "uniform":
        return
    progress = events_of(tmp_path / "one.json")
    assert [event["kind"] for event in progress] == ["progress"] * len(progress)
    assert progress[-1]["step"] == progress[-1]["total"]


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"budget": "params:10"}, "--budget: The budget of 10 parameters is too small"),
        ({"rank-min": 3, "rank-max": 3}, "--rank-min: No multiple of 2"),
        ({"model": "/nowhere"}, "--model: /nowhere"),
        ({"data": "/nowhere.jsonl"}, "--data: /nowhere.jsonl does not exist"),
        ({"reference": "/nowhere.jsonl"}, "--reference: /nowhere.jsonl does not exist"),
        ({"samples": 0}, "--samples: is 0; it must be at least 1"),
        ({"threads": -1}, "--threads: is -1; it must be at least 0"),
        ({"quantum": 0}, "--quantum: quantum is 0; it must be at least 1"),
        ({"power": "nan"}, "--power: power is nan; it must be a number above 0"),
        ({"target-modules": ""}, "--target-modules: target_modules is empty"),
        ({"target-modules": "q_proj", "kinds": "mlp", "rank-min": 0}, "--kinds: kinds is mlp, but all modules are"),
        ({"heat-map": "plan.png"}, "--heat-map: plan.png must end in .svg"),
        ({"heat-map": "/nowhere/plan.svg"}, "--heat-map: the folder /nowhere does not exist"),
        ({"target-modules": "q_proj,w1"}, "--target-modules: No linear module is named 'w1'"),
        ({"objective": "concave"}, "--objective: A concave objective needs a spectrum"),
        ({"budget": "uniform:60"}, "--budget: The budget of"),
        ({"scale": 0}, "--scale: scale is 0.0; alpha / r must be above 0"),
    ],
)
def test_bad_input_is_named(files, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes, fragment: str) -> None:
    out = tmp_path / "plan.json"
    assert main(command(files, out, **changes)) == 2
    assert fragment in capsys.readouterr().err
    (event,) = events_of(out)
    assert (event["kind"], event["code"]) == ("error", "bad_input")
    assert fragment in event["message"]
    assert not out.exists()


def test_a_plan_without_a_place_is_refused_before_the_analysis(
    files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.tars.analysis.measure", lambda *_: pytest.fail("analysed"))
    assert main(command(files, Path("/nowhere/plan.json"), events=files["data"].with_name("events"))) == 2
    assert "--out: the folder /nowhere does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("", "--data: rows.jsonl has no rows"),
        ('{"text": ""}', "--data: rows.jsonl, line 1: text is missing, empty or not a string"),
        (json.dumps({"prompt": "a bank " * 20, "completion": "a"}), "--data: No row has a token to predict: give"),
    ],
)
def test_data_without_anything_to_learn_is_named(
    files, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, fragment: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    assert main(command(files, tmp_path / "plan.json", data=tmp_path / "rows.jsonl")) == 2
    assert fragment in capsys.readouterr().err


def broken_model() -> Any:
    model = make_model()
    model.model.norm.weight.data.fill_(float("nan"))
    return model


def model_without_linear_modules() -> Any:
    """GPT-2 is built of Conv1D: its only linear module is the head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=64))


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (broken_model, "--model: The loss is not finite"),
        (model_without_linear_modules, "--target-modules: GPT2LMHeadModel has no linear module besides its head"),
    ],
)
def test_a_model_that_cannot_be_analysed_is_named(
    files, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, fragment: str
) -> None:
    make().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    assert main(command(files, tmp_path / "plan.json", model=tmp_path / "base")) == 2
    assert fragment in capsys.readouterr().err


def test_the_command_reads_parquet_and_its_models_own_words(files, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(sentences(20)), tmp_path / "rows.parquet")
    from_rows, from_parquet = tmp_path / "rows.json", tmp_path / "parquet.json"
    assert main(command(files, from_rows, reference="self")) == 0
    assert main(command(files, from_parquet, reference="self", data=tmp_path / "rows.parquet")) == 0
    plans = [json.loads(path.read_bytes()) | {"seconds": 0} for path in (from_rows, from_parquet)]
    assert plans[0] == plans[1]
    assert plans[0]["divergence_used"] is True


@pytest.mark.parametrize("budget", ["uniform", "half:3", "params:-1", "params:1e6"])
def test_a_malformed_budget_exits_with_2(files, tmp_path: Path, budget: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command(files, tmp_path / "plan.json", budget=budget))
    assert ended.value.code == 2


def test_a_fault_of_ours_exits_with_1(files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tars.analysis.measure", lambda *_: 1 / 0)
    out = tmp_path / "plan.json"
    assert main(command(files, out)) == 1
    assert events_of(out)[-1] == {"kind": "error", "code": "internal", "message": "ZeroDivisionError: division by zero"}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("training.tars", ("django", "torch")),
        ("training.tars.allocation", ("django", "torch")),
        ("training.tars.analysis", ("django", "adapterhub")),
        ("training.recipes", ("django", "torch")),
    ],
)
def test_imports_stay_light(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}; sys.exit(' '.join(set(sys.modules) & set({unwanted!r})) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
