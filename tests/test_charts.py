"""Charts' coordinates: what stands where in a frame of 100 by 50 with a margin of 10."""

from __future__ import annotations

from adapterhub import charts

FRAME = charts.Frame(100, 50, 10)


def test_a_curve_reaches_from_corner_to_corner() -> None:
    drawn = charts.curve(FRAME, [(1, 2.0), (2, 3.0), (3, 4.0)])
    assert drawn["points"] == "10.0,40.0 50.0,25.0 90.0,10.0"
    assert (drawn["low"], drawn["high"], drawn["first"], drawn["last"], drawn["now"]) == ("2", "4", 1, 3, "4")


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    drawn = charts.curve(FRAME, [(step, float(step)) for step in range(5000)])
    assert len(drawn["points"].split()) <= charts.MOST_POINTS + 1
    assert drawn["points"].endswith("90.0,10.0")


def test_bars_stand_on_the_floor() -> None:
    drawn = charts.histogram(FRAME, [4, 2], step=16, limit=16)
    assert [(bar["x"], bar["y"], bar["height"]) for bar in drawn["bars"]] == [(10.0, 10.0, 30.0), (50.0, 25.0, 15.0)]
    assert (drawn["limit"], drawn["reach"]) == (50.0, 32)
    assert charts.histogram(FRAME, [4, 2], step=16, limit=32)["limit"] is None


def test_a_value_beyond_the_reach_is_drawn_at_the_edge() -> None:
    heights = [charts.height_around_zero(FRAME, value, 2.0) for value in (0.0, 1.0, 9.0, -float("inf"))]
    assert heights == [25.0, 17.5, 10.0, 40.0]


def test_stairs_hold_until_the_next_step() -> None:
    assert charts.stairs(FRAME, [(0.0, 0.0), (0.5, 1.0)]) == "10.0,40.0 50.0,40.0 50.0,10.0 90,10.0"
    assert charts.stairs(FRAME, []) == ""


def test_pieces_of_a_bar_follow_each_other() -> None:
    pieces = charts.stacked({"weights": 3.0, "optimiser": 2.0}, ["weights", "gradients", "optimiser"], 10)
    assert [(piece["x"], piece["width"]) for piece in pieces] == [(0.0, 30.0), (30.0, 0), (30.0, 20.0)]


def test_the_highest_rank_is_the_darkest() -> None:
    heat = charts.heat_map({"model.layers.0.self_attn.q_proj": 8, "model.layers.1.mlp.down_proj": 0})
    assert [(cell["x"], cell["y"], cell["opacity"]) for cell in heat["cells"]] == [(84, 20, 1.0), (102, 128, 0.03)]
    assert heat["cells"][1]["title"].endswith("left out")
