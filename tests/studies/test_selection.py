"""Grid search: batched candidates give the same answers as single runs, and the choice maximizes the worst margin."""

import math

import _selection as selection
import pandas as pd
import pytest
import torch
from _selection import Candidate, Goal, choose_candidate, evaluate_candidates, reaches_goals
from hypothesis import given
from hypothesis import strategies as st

from steerlab import Example, generate
from steerlab.analysis.behavior import judge_answers, safety_summary
from steerlab.errors import DataError
from steerlab.methods import P2S

ROWS = [
    Example("Tell me of the Nile.", id="a", behavior="refuse"),
    Example("Hi", id="b", behavior="defer"),
    Example("What does a heron eat, and where does it sleep at night?", id="c", behavior="answer"),
]
REACH = [Goal("good", 0.8, 100), Goal("bad", 0.1, 50, at_most=True)]


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("positions", ["all", "last+generated"])
def test_batched_candidates_give_same_answers_as_single_runs(lm, monkeypatch, batch_size, positions) -> None:
    model = lm("llama", "nnsight")
    draw = torch.Generator().manual_seed(0)
    cells = [Candidate({"cell": i}, torch.randn(3, 32, generator=draw), a) for i, a in enumerate((0.0, 1.5, -3.0, 4.0))]
    unsteered = list(generate(model, ROWS, max_new_tokens=6))
    seen: list[list[str]] = []

    def record_answers(examples, texts, plain):
        seen.append(list(texts))
        return judge_answers(examples, texts, plain)

    monkeypatch.setattr(selection, "judge_answers", record_answers)
    options = dict(positions=positions, max_new_tokens=6)
    frame = evaluate_candidates(model, ROWS, unsteered, cells, site=1, batch_size=batch_size, progress=False, **options)
    assert frame["cell"].tolist() == [0, 1, 2, 3] and frame["alpha"].tolist() == [0.0, 1.5, -3.0, 4.0]
    for number, cell in enumerate(cells):
        table = P2S.from_table(1, {e.id: v for e, v in zip(ROWS, cell.vectors, strict=True)})
        alone = list(generate(model, ROWS, steer=table, alpha=cell.alpha, **options))
        assert seen[number] == alone
        for name, value in safety_summary(judge_answers(ROWS, alone, unsteered)).items():
            assert frame[name][number] == pytest.approx(value, nan_ok=True)
    assert seen[0] == unsteered and len({tuple(texts) for texts in seen}) == 4
    assert frame["harmless_identical"][0] == 1


def test_candidate_without_one_vector_per_input_raises(lm) -> None:
    for cells in ([], [Candidate({}, torch.zeros(2, 32), 1.0)]):
        with pytest.raises(DataError, match="3 inputs"):
            evaluate_candidates(lm(), ROWS, ["", "", ""], cells, site=1, positions="all", progress=False)


def test_margin_is_distance_to_goal_in_standard_errors() -> None:
    assert Goal("good", 0.8, 100).margin(0.88) == pytest.approx(2.0)
    assert Goal("bad", 0.2, 100, at_most=True).margin(0.12) == pytest.approx(2.0)
    assert Goal("good", 1.0, 100).margin(0.99) == pytest.approx(-1.0), "at 0 and 1 the error does not vanish"


shares = st.integers(0, 20).map(lambda n: n / 20)


@given(st.lists(st.tuples(shares, shares, st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=12))
def test_choice_maximizes_worst_margin_and_breaks_ties_by_smaller_alpha(cells) -> None:
    grid = pd.DataFrame(cells, columns=["good", "bad", "alpha"])
    worst = [min(goal.margin(v) for goal, v in zip(REACH, cell[:2], strict=True)) for cell in cells]
    chosen = choose_candidate(grid, REACH)
    assert chosen["worst_margin"] == max(worst)
    assert chosen["alpha"] == min(cell[2] for cell, w in zip(cells, worst, strict=True) if w == max(worst))
    assert reaches_goals(grid, REACH).tolist() == [w >= 0 for w in worst]
    assert (chosen["worst_margin"] >= 0) == reaches_goals(grid, REACH).any()


def test_candidate_with_missing_measure_is_not_chosen() -> None:
    grid = pd.DataFrame({"good": [0.81, 1.0], "bad": [0.09, math.nan], "alpha": [2.0, 1.0]})
    assert choose_candidate(grid, REACH)["alpha"] == 2.0
    assert reaches_goals(grid, REACH).tolist() == [True, False]


def test_grid_without_candidates_or_measures_raises() -> None:
    grid = pd.DataFrame({"good": [1.0], "alpha": [1.0]})
    with pytest.raises(DataError, match=r"lacks the measures \['bad'\]"):
        choose_candidate(grid, REACH)
    with pytest.raises(DataError, match="0 candidates"):
        choose_candidate(pd.DataFrame({"good": [], "bad": [], "alpha": []}), REACH)
