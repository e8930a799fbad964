"""The cost of a sweep by its definition: row-columns times the blocks that run."""

import pytest
from reference import questions, vectors

from steerlab import Site, SteeringVector, sweep
from steerlab.analysis._sweep.plan import AnswerForwards, SettingBatch, _bytes_per_input
from steerlab.models.kv_prefix import TOKENS
from steerlab.models.model import Model


def test_halves_have_all_settings_or_all_inputs_once() -> None:
    assert [part.settings for part in SettingBatch((4, 5, 6), (2, 6), None).halves()] == [(4,), (5, 6)]
    assert [part.rows for part in SettingBatch((4,), (2, 6), 1).halves()] == [(2, 4), (4, 6)]
    assert [part.rows for part in SettingBatch((4,), (2, 5), 1).halves()] == [(2, 3), (3, 5)]
    assert SettingBatch((4,), (2, 3), 1).halves() == []
    assert SettingBatch((4, 5, 6), (2, 6), None).n_rows == 12


@pytest.mark.parametrize("positions", ["last", "all"])
def test_cost_of_a_batch_is_its_row_columns_times_the_blocks_above_its_restart(lm, positions: str) -> None:
    model: Model = lm()
    plan = sweep(model, questions(), {"v": vectors(model)}, alphas=[0.0, 1.0, 2.0], positions=positions, dry_run=True)
    assert plan.answers is not None
    for group in plan.answers.groups:
        for batch in group.batches:
            blocks = 4 if batch.restart_layer is None else 3 - batch.restart_layer
            rows = len(batch.settings) * (batch.rows[1] - batch.rows[0])
            assert group.cost(batch, 4) == rows * group.inputs.n_variants * group.tail * blocks
        steered = sorted(i for batch in group.batches for i in batch.settings)
        assert sum(batch.n_rows for batch in group.batches) == len(set(steered)) * len(group.inputs.numbers)


def test_plan_says_what_restarts_and_what_it_does_without(lm) -> None:
    model: Model = lm()
    random = vectors(model)[0].vector_
    blocks, first = {"v": vectors(model)}, {"v": SteeringVector({Site(0, "block_in"): random})}
    texts = [sweep(model, questions(), one, alphas=[1.0], dry_run=True).explain() for one in (blocks, first)]
    assert ["restarts at the cached output" in text for text in texts] == [True, False]


def planned(model: Model, positions: str) -> AnswerForwards:
    plan = sweep(model, questions(), {"v": vectors(model)}, alphas=[0.0, 1.0], positions=positions, dry_run=True)
    assert plan.answers is not None
    return plan.answers


def test_a_prefix_is_cached_from_four_columns_on(lm) -> None:
    for column, cut in ((3, 0), (4, 4), (5, 5)):
        assert {group.cut for group in planned(lm(), f"prompt[{column}]").groups} == {cut}
    assert "whole rows, as the prompt is steered from its beginning on" in planned(lm(), "all").explain()


def test_rows_of_a_forward_and_bytes_of_an_input_follow_from_the_longest_input(lm) -> None:
    model: Model = lm()
    answers = planned(model, "last+generated")
    tail = max(group.tail for group in answers.groups)
    assert answers.rows_per_forward == max(1, TOKENS["cpu"] // tail)
    longest = max(len(row) for variant in answers.rows.variants for row in variant)
    cached = model.shortcuts.numbers_per_token * (longest - tail)
    states = model.n_layers * tail * len(answers.rows.variants) * model.hidden_size
    assert _bytes_per_input(model, answers.settings, answers.rows, tail) == (cached + states) * 4  # float32
