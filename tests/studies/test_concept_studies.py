"""The studies of concepts and of what needs a predicted vector run from end to end, resume, and draw their figures."""

import json
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from _concepts import Directions, find_directions, split_ids
from _shift_pairs import EMOTIONS
from nightly import by_day
from running import succeed
from saved import tiny_folder
from ssae import cosines

from steerlab.data import attribute_pairs, change_labels
from steerlab.metrics import correlations
from steerlab.testing import tiny_hf, tiny_tokenizer

VALUES = [column.split("=")[1] for column in change_labels(attribute_pairs("objects", 400))]


def folder_with_words(path: Path) -> Path:
    """A random model whose tokenizer has a token for each value."""
    tokenizer, model = tiny_tokenizer(), tiny_hf("llama", n_layers=6)
    tokenizer.add_tokens([f" {value}" for value in VALUES])
    torch.manual_seed(0)  # new rows are drawn
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / "stages").glob("*.csv")}


@pytest.mark.nightly
def test_study_of_concepts_resumes_and_draws(tmp_path: Path) -> None:
    model, out = folder_with_words(tmp_path / "model"), tmp_path / "ssae" / "tiny"
    arguments = ["analyses/ssae.py", "--model", str(model), "--pairs", "200", "--out", str(out)]
    succeed(*arguments)
    summary, before = json.loads((out / "summary.json").read_text()), stamps(out)
    for kind in ("objects", "sentences"):
        for method in ("random", "mean", "pca", "affine", "ica", "dictionary", "ssae", "labels"):
            mcc = summary[f"{kind}.{method}.mcc"]
            assert 0 <= mcc["low"] <= mcc["high"] <= 1, "also after stages were read back"
            assert method == "ssae" or summary[f"{kind}.ssae_over_{method}.mcc"]["low"] <= 1
    assert len(summary["objects.ssae.seeds"]) == 5 and len(summary["objects.pca.seeds"]) == 1
    steered = pd.read_csv(out / "steered.csv")
    assert set(steered["value"].str.split("=").str[1]) == set(VALUES)
    assert steered.groupby("method")["alpha"].min().gt(0).all() and steered["others_kept"].between(0, 1).all()
    succeed(*arguments)
    assert stamps(out) == before
    succeed("figures/ssae.py", str(tmp_path / "ssae"), "--out", str(tmp_path))
    assert (tmp_path / "ssae.pdf").stat().st_size > 5000


@pytest.mark.nightly
def test_study_of_dependence_resumes_and_draws(tmp_path: Path) -> None:
    model, out = tiny_folder(tmp_path / "model", n_layers=24), tmp_path / "dependence"
    arguments = ["analyses/dependence.py", "--model", str(model), "--language-model", str(model), "--rows", "120"]
    arguments += ["--inputs", "48", "--out", str(out)]
    succeed(*arguments)
    frame, summary, before = (
        pd.read_csv(out / "dependence.csv"), json.loads((out / "summary.json").read_text()), stamps(out),
    )  # fmt: skip
    assert set(frame["task"]) == {"language", "images", "safety"} and len(frame) == 18
    assert frame[frame["predictor"] == "class means"]["within"].eq(0).all()
    assert all({"value", "low", "high", "n"} == set(summary[f"{task}.lost_nats"]) for task in frame["task"].unique())
    assert str(tmp_path) not in (out / "summary.json").read_text(), "no path of this machine"
    succeed(*arguments)
    assert stamps(out) == before


@pytest.mark.nightly
def test_study_of_representation_shift_resumes_and_draws(tmp_path: Path) -> None:
    model, out = tiny_folder(tmp_path / "model", n_layers=6), tmp_path / "shift"
    for name in EMOTIONS:
        number = 200 if name == "happiness" else 40
        (tmp_path / f"{name}.json").write_text(json.dumps([f"It is {name} number {i}." for i in range(number)]))
    arguments = ["analyses/representation_shift.py", "--model", str(model), "--repe", str(tmp_path), "--limit", "40"]
    arguments += ["--seeds", "1", "--layers", "4", "--out", str(out)]
    succeed(*arguments)
    summary, before = json.loads((out / "summary.json").read_text()), stamps(out)
    assert str(tmp_path) not in (out / "summary.json").read_text(), "no path of this machine"
    for pair in ("colors", "emotion"):
        assert summary[f"{pair}.none.kl"]["value"] == summary[f"{pair}.none.square"]["value"] == 0
        assert summary[f"{pair}.own.square"]["value"] == 1 and summary[f"{pair}.own.kl"]["value"] > 0.5
    assert summary["colors.own.agrees"]["value"] >= summary["colors.other_concept.agrees"]["value"]
    concepts, regions = pd.read_csv(out / "concepts.csv"), pd.read_csv(out / "regions.csv")
    colors = concepts[concepts["pair"] == "colors"].reset_index(drop=True)
    for side, key in (("before", "concept"), ("after", "partner")):
        of_side = regions[regions["model"] == side]
        assert of_side["concept"].tolist() == colors.loc[of_side["line"], key].tolist()
    assert set(concepts["pair"]) == {"colors", "emotion"} and concepts["consistency"].between(-1, 1.001).all()
    succeed(*arguments)
    assert stamps(out) == before
    succeed("figures/representation_shift.py", str(out), "--out", str(tmp_path))
    assert all((tmp_path / f"representation_shift{name}.pdf").stat().st_size > 5000 for name in ("", "_answers"))


def test_mirrored_pairs_are_on_one_side_and_no_test_article_in_training() -> None:
    rows = attribute_pairs("sentences", 500, changed=(2, 2))
    ids, row_of = split_ids(rows), {row.id: row for row in rows}
    assert sorted(chain.from_iterable(ids.values())) == sorted(row_of)
    texts = {
        part: {frozenset((row_of[i].contrast.positive, row_of[i].contrast.negative)) for i in ids[part]} for part in ids
    }
    assert not texts["train"] & texts["validation"] and len(ids["validation"]) > 60
    words = {part: {row_of[i].meta["words"] for i in ids[part]} for part in ids}
    assert not words["test"] & (words["train"] | words["validation"])


@pytest.mark.parametrize(
    "method", by_day(["pca", "ica", "dictionary", "affine", "labels"], lambda method: method != "affine")
)
def test_codes_times_rows_are_what_a_method_explains(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(300, 3, generator=generator) < 0.3).float() * torch.randn(300, 3, generator=generator)
    z = labels @ torch.randn(3, 20, generator=generator) + 0.01 * torch.randn(300, 20, generator=generator)
    z += 0.2 * (method in ("pca", "ica", "affine"))  # which have a constant
    found = find_directions(method, z, labels, 0.01 if method == "dictionary" else None, 0)
    assert found is not None and found.rows.shape == (3, 20)
    assert (found.codes(z) @ found.rows + found.constant - z).square().sum() / z.square().sum() < 0.02
    if method in ("ica", "labels"):
        assert correlations(labels, found.codes(z)).abs().max(1).values.min() > 0.9


def test_fixed_directions_move_a_start_to_its_end_whatever_their_sign_and_length() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(-1, 2, (300, 3), generator=generator).float()
    start, rows = torch.randn(300, 40, generator=generator), torch.eye(3, 40) * 8
    part: Any = SimpleNamespace(
        start_and_end=lambda *_: (start, start + truth @ rows), truth=lambda _: truth,
        differences=lambda *_: truth @ rows, best_columns=lambda *_: (torch.arange(3), torch.ones(3)),
    )  # fmt: skip
    for scale in (1.0, -0.3):
        found = cosines(part, Directions(lambda z: z @ torch.linalg.pinv(rows), scale * rows), 0)
        assert min(found["fixed"]) > 0.9999 and (min(found["read"]) > 0.9999) == (scale == 1.0)
