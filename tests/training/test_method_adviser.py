"""The adviser: what it says in the situations of the decision matrix, and why."""

from __future__ import annotations

from training.planning.method_adviser import METHODS, Situation, advise, leader, what_would_change_it

FITS = dict.fromkeys(METHODS, "fits")


def points(situation: Situation, criterion: str) -> dict[str, int]:
    return {
        advice.method: reason.points
        for advice in advise(situation)
        for reason in advice.reasons
        if reason.criterion == criterion
    }


def test_lora_is_the_default_and_every_reason_is_shown() -> None:
    first = advise(Situation(rows=5_000, targets=400_000, verdicts=FITS, rank_parameters=500_000))[0]
    assert first.method == "lora"
    assert [reason.criterion for reason in first.reasons] == [
        "memory",
        "capacity",
        "dataset size",
        "domain shift",
        "shared serving",
        "forgetting",
        "latency",
        "training speed",
    ]
    assert first.points == sum(reason.points for reason in first.reasons)


def test_what_does_not_fit_comes_last_and_says_so() -> None:
    only_4_bit = {**dict.fromkeys(METHODS, "will not fit"), "qlora": "tight"}
    ratings = advise(Situation(rows=5_000, verdicts=only_4_bit))
    assert [advice.method for advice in ratings if advice.is_possible] == ["qlora"]
    assert leader(Situation(verdicts=dict.fromkeys(METHODS, "will not fit"))) is None


def test_the_whole_model_is_for_a_far_domain_with_much_data_and_a_cluster_of_its_own() -> None:
    far = Situation(
        rows=400_000,
        targets=90_000_000,
        divergence=2.0,
        verdicts=FITS,
        rank_parameters=300_000,
        many_adapters=False,
        keeps_general_skill=False,
    )
    assert leader(far) == "full"
    assert "If it were served alone" not in " ".join(what_would_change_it(far))


def test_what_would_change_it_is_asked_and_not_guessed() -> None:
    situation = Situation(rows=5_000, verdicts=FITS)
    sentences = what_would_change_it(situation)
    assert "If only 4-bit weights fitted the device, QLoRA would come first." in sentences
    assert sentences[-1].endswith(
        "of a far domain, served alone, and general skill might be lost, full fine-tuning would come first."
    )


def test_capacity_names_the_rank_that_is_enough() -> None:
    small = Situation(targets=1_000_000, rank_parameters=20_000, rank=16)
    text = next(reason.text for reason in advise(small)[0].reasons if reason.criterion == "capacity")
    assert text.endswith("take rank 64.")
    assert points(Situation(targets=10**9, rank_parameters=20_000), "capacity")["lora"] == -2


def test_what_is_not_known_gives_no_points() -> None:
    for criterion in ("memory", "capacity", "dataset size", "domain shift"):
        assert set(points(Situation(), criterion).values()) == {0}
