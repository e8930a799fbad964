"""How concepts move when a model is trained further, and steering an answer from one concept to another.

    python analyses/representation_shift.py --repe REPE --out results/representation_shift
    python figures/representation_shift.py results/representation_shift

Two small pairs are made here in minutes (`_shift_pairs.py`). `colors`: the image-text model learns to call purple
things red, and is asked for colors. `emotion`: SmolLM2 reads happy scenarios and learns that it feels happy, and is
asked how other scenarios of six emotions make it feel. Both models read the same texts. The state that predicts the
answer is written as concepts (k-means), and each concept has a shift: the mean change of its states.

Do concepts say more about the change than a single vector? For new inputs, from the state of the first model alone, the
change is predicted: by the shift of the concept that is active, by one shift for all, by the shift of another concept,
by a ridge regression; "own" is the change itself. Then the predicted change is added to the first model, at the last
token of the prompt: does it now answer as the trained one does? Layer and number of concepts are chosen on validation
inputs, for each predictor by itself; test inputs are looked at once.

Third, answers of the first image-text model are steered ("yes" to "no", "one" to "three", "red" to "blue"), as in the
paper: `_concept_answers.py`.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import estimate, numbers, parser, provenance, show_table
from _concept_answers import steer_answers
from _shift_pairs import PARTS, RECIPES, Pair, colors_pair, emotion_pair
from numpy.typing import NDArray
from PIL import Image
from scenes.world import SIDE
from torch import Tensor

import steerlab
from steerlab import Activations, Example
from steerlab._support.images import open_image
from steerlab.analysis.concepts import concept_examples, concept_regions, concept_words, word_overlap
from steerlab.analysis.representation_shift import RepresentationShift, representation_shift
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.methods import P2S, ConceptDictionary
from steerlab.methods.regression import fit_ridge
from steerlab.metrics import paired_bootstrap
from steerlab.models.model import Model

CONCEPTS = (4, 8, 16)
PREDICTORS = ("mean", "concepts", "other_concept", "ridge", "own")
WORDS = {"colors": {"min_letters": 3, "among": 60}, "emotion": {"min_letters": 3, "among": 200}}
EMOTION = {"fit": 400, "validation": 120, "test": 240}  # scenarios
SHOWN = 5  # words, and examples, of a concept
TILES, GRID = 3, 8  # images of a concept in the figure, and the grid of regions


class PairStudy:
    """One pair: its states in both models, and what each says next."""

    def __init__(self, study: Study, pair: Pair, batch_size: int) -> None:
        self.study, self.pair, self.batch_size = study, pair, batch_size
        depth = pair.before.n_layers
        self.layers = sorted({round(depth * share) - 1 for share in (2 / 3, 5 / 6, 1)})
        self.acts = {(part, side): self.capture(part, side) for part in PARTS for side in ("before", "after")}
        self.said = {(part, side): self.next_tokens(part, side) for part in PARTS for side in ("before", "after")}

    def model(self, side: str) -> Model:
        """The model before or after training."""
        return self.pair.before if side == "before" else self.pair.after

    def capture(self, part: str, side: str) -> Activations:
        """The state of the last prompt token, which predicts the answer."""
        folder = self.study.folder / "stages" / f"states-{self.pair.name}-{part}-{side}"
        rows, size = self.pair.rows[part], self.batch_size
        return steerlab.capture(self.model(side), rows, layers=self.layers, batch_size=size, folder=folder).load()

    def next_tokens(self, part: str, side: str) -> pd.Series:
        """The likeliest next token of each input."""
        rows = self.pair.rows[part]
        name = f"said-{self.pair.name}-{part}-{side}"
        found = self.study.stage(name, lambda: likeliest(self.model(side), rows, None, self.batch_size))
        return found.set_index("example_id")["token"].astype(int)

    def dictionary(self, layer: int, n: int, seed: int, part: str = "fit", side: str = "before") -> ConceptDictionary:
        """The concepts of a part's states in one model."""
        return ConceptDictionary(layer, n, seed=seed).fit(self.acts[part, side])

    def shift(self, layer: int, n: int, seed: int) -> tuple[ConceptDictionary, RepresentationShift]:
        """The concepts before, and how they move."""
        concepts = self.dictionary(layer, n, seed)
        return concepts, representation_shift(concepts, self.acts["fit", "before"], self.acts["fit", "after"])

    def predict(self, name: str, layer: int, n: int, part: str, seed: int) -> Tensor:
        """The predicted change of each input's state, `(row, hidden)`."""
        old, new = (self.acts["fit", side].at(layer) for side in ("before", "after"))
        x = self.acts[part, "before"].at(layer)
        if name == "own":
            return self.acts[part, "after"].at(layer) - x
        if name == "mean":
            return (new - old).mean(0).expand(len(x), -1)
        if name == "ridge":
            weights, intercept = fit_ridge(old, new - old)
            return x @ weights + intercept
        concepts, shift = self.shift(layer, n, seed)
        vectors = shift.vectors if name == "concepts" else shift.vectors.roll(1, 0)
        return vectors[concepts.assign(x)]

    def measure(self, name: str, layer: int, n: int, part: str, seed: int) -> pd.DataFrame:
        """Of each input: the squared change, what is left of it, and whether the first model with the predicted change
        says what the trained one says.
        """
        rows, change = self.pair.rows[part], self.predict("own", layer, n, part, seed)
        predicted = self.predict(name, layer, n, part, seed)
        ids = self.acts[part, "before"].index["example_id"].tolist()
        steerer = P2S.from_table(layer, dict(zip(ids, predicted, strict=True)))
        now = likeliest(self.pair.before, rows, steerer, self.batch_size).set_index("example_id")["token"]
        wanted, was = self.said[part, "after"][ids], self.said[part, "before"][ids]
        return pd.DataFrame({
            "example_id": ids, "square": change.square().sum(1).numpy(),
            "left": (change - predicted).square().sum(1).numpy(),
            "agrees": (now[ids] == wanted).astype(float).to_numpy(),
            "changed": (was != wanted).astype(float).to_numpy(),
        })  # fmt: skip

    def search(self) -> pd.DataFrame:
        """The agreement on validation inputs of every predictor at every layer and number of concepts."""
        found = []
        for name, layer, n in product(PREDICTORS, self.layers, CONCEPTS):
            if name == "other_concept" or (n != CONCEPTS[0] and name != "concepts"):
                continue  # the control takes the setting of the concepts; the others have no number of concepts
            compute = partial(self.measure, name, layer, n, "validation", 0)
            measured = self.study.stage(f"search-{self.pair.name}-{name}-{layer}-{n}", compute)
            one = {"pair": self.pair.name, "predictor": name, "layer": layer, "n_concepts": n}
            found.append(one | {"agrees": measured["agrees"].mean(), "explained": explained(measured)})
        return pd.DataFrame(found)


def likeliest(model: Model, rows: list[Example], steerer: P2S | None, batch_size: int) -> pd.DataFrame:
    """The likeliest next token of each input, steered at the last prompt token or not."""
    steer = () if steerer is None else steerer
    options: dict[str, Any] = {} if steerer is None else {"positions": "last"}
    found = steerlab.generate(
        model, rows, steer=steer, max_new_tokens=1, batch_size=batch_size, progress=False, **options
    )
    return pd.DataFrame({"example_id": [row.id for row in rows], "token": [ids[0] for ids in found.ids]})


def explained(measured: pd.DataFrame) -> float:
    """The share of the squared change that a prediction takes away."""
    return float(1 - measured["left"].sum() / measured["square"].sum())


def test(run: PairStudy, chosen: pd.DataFrame, seeds: int) -> dict[str, Any]:
    """Every predictor at its chosen setting on test inputs, with the differences to the concepts."""
    name, found, summary = run.pair.name, dict[str, pd.DataFrame](), dict[str, Any]()
    for predictor, at in chosen.iterrows():
        layer, n = int(at["layer"]), int(at["n_concepts"])
        several = [
            run.study.stage(f"test-{name}-{predictor}-{seed}", partial(run.measure, predictor, layer, n, "test", seed))
            for seed in range(seeds if "concept" in str(predictor) else 1)
        ]
        means = pd.concat(several).groupby("example_id", sort=False)[["square", "left", "agrees", "changed"]].mean()
        found[str(predictor)] = means
        summary[f"{name}.{predictor}.layer"] = layer
        if "concept" in str(predictor):
            summary[f"{name}.{predictor}.n_concepts"] = n
        summary[f"{name}.{predictor}.agrees"] = estimate(means["agrees"].tolist(), 0)
        summary[f"{name}.{predictor}.explained"] = share_left(means)
        changed = means[means["changed"] == 1]
        summary[f"{name}.{predictor}.agrees_where_changed"] = estimate(changed["agrees"].tolist(), 0)
    none = 1 - found["mean"]["changed"]
    summary[f"{name}.none.agrees"] = estimate(none.tolist(), 0)
    for rival in [one for one in found if one != "concepts"]:
        difference = paired_bootstrap(found["concepts"]["agrees"], found[rival]["agrees"], seed=0)
        summary[f"{name}.concepts_over_{rival}.agrees"] = numbers(difference)
    difference = paired_bootstrap(found["concepts"]["agrees"], none, seed=0)
    return summary | {f"{name}.concepts_over_none.agrees": numbers(difference)}


def share_left(measured: pd.DataFrame, draws: int = 1000) -> dict[str, float]:
    """The explained share with its interval over inputs."""
    rng, n = np.random.default_rng(0), len(measured)
    drawn = [explained(measured.iloc[rng.integers(0, n, n)]) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": round(explained(measured), 4), "low": round(low, 4), "high": round(high, 4), "n": n}


def describe_concepts(run: PairStudy, layer: int, n: int) -> pd.DataFrame:
    """Each concept: its shift, its words before, after the shift and in the trained model, how close the shift comes
    to the trained model's concepts (found in other inputs), its most active examples, and what its inputs are.
    """
    concepts, shift = run.shift(layer, n, 0)
    after = run.dictionary(layer, n, 0, "validation", "after")
    frame = shift.frame().merge(shift.recovery(after), on="concept")
    options: dict[str, Any] = {"top": SHOWN, "stop_words": (), **WORDS[run.pair.name]}
    partner = after.concepts_[torch.tensor(frame["partner"].tolist())]
    reads = {"words_before": (run.pair.before, concepts.concepts_), "words_moved": (run.pair.after, shift.moved())}
    words = {key: concept_words(model, vectors, **options) for key, (model, vectors) in reads.items()}
    words = {key: [several[k] for k in frame["concept"]] for key, several in words.items()}
    words["words_after"] = concept_words(run.pair.after, partner, **options)
    for key, several in words.items():
        frame[key] = [" ".join(one) for one in several]
    for key in ("words_before", "words_moved"):
        pairs = zip(words[key], words["words_after"], strict=True)
        frame[f"overlap_{key.removeprefix('words_')}"] = [word_overlap(one, other) for one, other in pairs]
    top = concept_examples(concepts, run.acts["fit", "before"], SHOWN)
    frame["examples"] = [" ".join(top.loc[top["concept"] == k, "example_id"]) for k in frame["concept"]]
    active = concepts.assign(run.acts["fit", "before"].at(layer)).numpy()
    changed = (run.said["fit", "before"] != run.said["fit", "after"]).to_numpy()
    frame["changed"] = [changed[active == k].mean() for k in frame["concept"]]
    counts = [run.acts["fit", "before"].index.loc[active == k, "behavior"].value_counts() for k in frame["concept"]]
    frame["inputs"] = [" ".join(f"{name}:{count}" for name, count in one.items()) for one in counts]
    return frame.assign(pair=run.pair.name, layer=layer, n_concepts=n)


def shift_part(study: Study, pair: Pair, args: argparse.Namespace) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Everything about one pair: numbers, concepts, the search."""
    run = PairStudy(study, pair, args.batch_size)
    grid = run.search()
    ranked = grid.sort_values("agrees", ascending=False, kind="stable").groupby("predictor").first()
    ranked.loc["other_concept"] = ranked.loc["concepts"]
    chosen = ranked.loc[list(PREDICTORS)]
    summary = test(run, chosen, args.seeds) | {f"{pair.name}.loss": round(pair.loss, 4)}
    at = chosen.loc["concepts"]
    frame = describe_concepts(run, int(at["layer"]), int(at["n_concepts"]))
    if pair.before.vision is not None:
        concepts = run.dictionary(int(at["layer"]), int(at["n_concepts"]), 0)
        summary |= find_regions(study, pair, concepts, frame)
    for key in ("overlap_before", "overlap_moved", "consistency", "consistency_others", "recovered"):
        summary[f"{pair.name}.{key}"] = round(float(np.average(frame[key], weights=frame["members"])), 4)
    return summary, frame, grid


def find_regions(study: Study, pair: Pair, concepts: ConceptDictionary, frame: pd.DataFrame) -> dict[str, Any]:
    """The region that each concept's most active images need, as `regions.csv` with the images in `images.png`; and
    how often that region lies on the thing that the question is about, for random test images.
    """
    rows = {row.id: row for part in pair.rows.values() for row in part}
    chosen = [(k, i) for k, ids in zip(frame["concept"], frame["examples"], strict=True) for i in ids.split()[:TILES]]

    def compute(name: str, ids: list[str]) -> pd.DataFrame:
        several = [rows[i] for i in ids]
        return study.stage(name, lambda: concept_regions(pair.before, concepts, several, grid=GRID, batch_size=GRID**2))

    def strongest(found: pd.DataFrame) -> pd.DataFrame:
        return found.loc[found.groupby("example_id")["drop"].idxmax()].set_index("example_id")

    top = strongest(compute("regions-top", list(dict.fromkeys(i for _, i in chosen))))
    columns = ["concept", "example_id", "row", "column", "drop"]
    table = pd.DataFrame([(k, i, *top.loc[i, ["row", "column", "drop"]]) for k, i in chosen], columns=columns)
    table.round(4).to_csv(study.folder / "regions.csv", index=False)
    images = [open_image(rows[i].images[0]) for _, i in chosen]
    sheet = Image.new("RGB", (TILES * SIDE, SIDE * -(-len(images) // TILES)), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (SIDE * (number % TILES), SIDE * (number // TILES)))
    sheet.save(study.folder / "images.png")
    drawn = np.random.default_rng(0).permutation([row.id for row in pair.rows["test"]])[:60].tolist()
    inside = {i: _cells_inside(rows[i].meta["box"]) for i in drawn}
    best = strongest(compute("regions-random", drawn))
    hits = [float(inside[i][int(best.loc[i, "row"]), int(best.loc[i, "column"])]) for i in drawn]
    chance = [float(inside[i].mean()) for i in drawn]
    return {"colors.region_on_thing": estimate(hits, 0), "colors.region_by_chance": estimate(chance, 0)}


def _cells_inside(box: str) -> NDArray[np.bool_]:
    """Which cells of the grid have their middle in a box."""
    left, top, side = map(int, box.split())
    middles = (np.arange(GRID) + 0.5) * SIDE / GRID
    return np.outer((middles >= top) & (middles < top + side), (middles >= left) & (middles < left + side))


def page(frame: pd.DataFrame) -> str:
    """The concepts of both pairs in words."""
    lines = ["# Concepts before and after", ""]
    for pair, several in frame.groupby("pair", sort=False):
        lines += [f"## {pair}", ""]
        for row in several.itertuples():
            lines.append(
                f"- concept {row.concept} ({row.members} inputs; {row.inputs}): **{row.words_before}** -> "
                f"**{row.words_moved}** (trained: {row.words_after}); consistency {row.consistency_others:.2f}, "
                f"norm {row.norm:.1f}, answers changed {row.changed:.2f}"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Train the pairs, measure them, steer answers."""
    arguments = parser(__doc__, "results/representation_shift")
    arguments.set_defaults(batch_size=64)
    arguments.add_argument("--repe", type=Path, required=True, help="folder with the emotions of RepE (happiness.json)")
    arguments.add_argument("--seeds", type=int, default=3, help="how often concepts are found for the test")
    args = arguments.parse_args()
    n = args.limit or 600
    stages, device = Path(args.out) / "stages", args.device
    pairs = [
        colors_pair(stages / "tuned-colors", {"fit": n, "validation": n // 2, "test": n}, args.seed, device),
        emotion_pair(
            args.model,
            args.repe,
            stages / "tuned-emotion",
            {part: min(n, most) for part, most in EMOTION.items()},
            args.seed,
            device,
        ),
    ]
    everything = [row for pair in pairs for part in PARTS for row in pair.rows[part]]
    identity = {"study": "representation_shift", "seed": args.seed, "limit": args.limit, "data": data_hash(everything)}
    identity |= {f"weights_{p.name}": [m.info()["weights"] for m in (p.before, p.after)] for p in pairs}
    identity |= {"recipes": repr(RECIPES), "concepts": CONCEPTS}
    study = Study(args.out, identity)
    summary, frames, grids = dict[str, Any](), [], []
    for pair in pairs:
        found, frame, grid = shift_part(study, pair, args)
        summary |= found
        frames.append(frame)
        grids.append(grid)
    steered, answers_grid, numbers_of_answers = steer_answers(study, pairs[0].before, args)
    concepts = pd.concat(frames, ignore_index=True)
    for name, table in {"concepts": concepts, "grid": pd.concat(grids), "answers_grid": answers_grid}.items():
        table.round(4).to_csv(study.folder / f"{name}.csv", index=False)
    study.finish(
        steered.round(4), summary | numbers_of_answers, page(concepts), provenance(pairs[0].before, everything, args)
    )
    show_table("Concepts", concepts[["pair", "concept", "members", "norm", "words_before", "words_moved"]])


if __name__ == "__main__":
    main()
