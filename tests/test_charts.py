"""Charts' coordinates: what stands where in a frame of 100 by 50 with a margin of 10."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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


def test_a_place_beyond_the_axes_is_drawn_at_the_edge() -> None:
    start = datetime(2026, 11, 30, 10, 0, tzinfo=UTC)
    plot = charts.Plot(start, start + timedelta(minutes=40), -2, 2, width=120, height=60, left=20, bottom=10, top=10)
    assert [plot.y(value) for value in (0.0, 2.0, 9.0, -float("inf"))] == [30.0, 10.0, 10.0, 50.0]
    assert [plot.x(start + timedelta(minutes=minutes)) for minutes in (-5, 0, 20, 60)] == [20.0, 20.0, 63.0, 106.0]


def test_ticks_are_round_values_and_times() -> None:
    assert charts.ticks(-3, 3) == [-2, 0, 2]
    assert charts.ticks(0, 100) == [0, 50, 100]
    start = datetime(2026, 11, 30, 10, 3, tzinfo=UTC)
    hour = [label for _, label in charts.time_ticks(start, start + timedelta(hours=1))]
    assert hour == ["10:15", "10:30", "10:45", "11:00"]
    days = [label for _, label in charts.time_ticks(start, start + timedelta(days=2))]
    assert days == ["12:00", "01 Dec", "12:00", "02 Dec"]


def test_pieces_of_a_bar_follow_each_other() -> None:
    pieces = charts.stacked({"weights": 3.0, "optimiser": 2.0}, ["weights", "gradients", "optimiser"], 10)
    assert [(piece["x"], piece["width"]) for piece in pieces] == [(0.0, 30.0), (30.0, 0), (30.0, 20.0)]


def test_the_highest_rank_is_the_darkest() -> None:
    heat = charts.heat_map({"model.layers.0.self_attn.q_proj": 8, "model.layers.1.mlp.down_proj": 0})
    assert [(cell["x"], cell["y"], cell["opacity"]) for cell in heat["cells"]] == [(84, 20, 1.0), (102, 128, 0.03)]
    assert heat["cells"][1]["title"].endswith("left out")
