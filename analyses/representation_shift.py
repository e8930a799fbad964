"""How concepts move when a model is trained further, and steering an answer from one concept to another.

    python analyses/representation_shift.py --repe REPE --out results/representation_shift
    python figures/representation_shift.py results/representation_shift

Two small pairs are made here in minutes (`_shift_pairs.py`). `colors`: the image-text model learns to say red where it
says purple, and is asked for colors. `emotion`: SmolLM2 reads happy scenarios and learns that it feels happy, and is
asked how other scenarios of six emotions make it feel. Both models read the same texts. The state that predicts the
answer is written as eight concepts (k-means), and each concept has a shift: the mean change of its states.

Do concepts say more about the change than a single vector? For new inputs, from the state of the first model alone, the
change is predicted: by the shift of the concept that is active, by one shift for all, by the mean shift of the inputs
with the same first answer, by the shift of another concept, by a ridge regression; "own" is the change itself. The
predicted change is added to the first model, at the last token of the prompt. How much of the divergence (KL) between
the two models' next tokens does it take away, and is the likeliest token that of the trained model? Each predictor has
its layer chosen on validation inputs; test inputs are looked at once.

Third, answers of the first image-text model are steered ("yes" to "no", "one" to "three", "red" to "blue"), as in the
paper: `_concept_answers.py`.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import estimate, numbers, parser, provenance, show_table
from _concept_answers import ANSWER_SETTINGS, steer_answers
from _shift_pairs import OLD, PARTS, TRAINING, Pair, colors_pair, emotion_pair
from numpy.typing import NDArray
from PIL import Image
from scenes.world import SIDE
from torch import Tensor

import steerlab
from steerlab import Activations, Example, Request
from steerlab._support.images import open_image
from steerlab.analysis.concepts import concept_examples, concept_regions, concept_words, overlap
from steerlab.analysis.representation_shift import RepresentationShift, representation_shift
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.methods import P2S, ConceptDictionary
from steerlab.methods.regression import fit_ridge
from steerlab.metrics import bootstrap_ratio, paired_bootstrap
from steerlab.models.model import Model

N_CONCEPTS = 8
PREDICTORS = ("mean", "answer", "concepts", "other_concept", "ridge", "own")
CLUSTERED = ("concepts", "other_concept")  # those that depend on a seed
WORDS = {"colors": {"min_letters": 3, "among": 60}, "emotion": {"min_letters": 3, "among": 200}}
EMOTION = {"fit": 400, "validation": 120, "test": 240}  # scenarios
SHOWN, COMPARED = 5, 20  # words, and examples, of a concept; examples that are compared with the trained model's
TILES, GRID = 3, 8  # images of a concept in the figure, and the grid of regions


class PairStudy:
    """One pair: its states in both models, and what each says next."""

    def __init__(self, study: Study, pair: Pair, batch_size: int) -> None:
        self.study, self.pair, self.batch_size = study, pair, batch_size
        depth = pair.before.n_layers
        self.layers = sorted({round(depth * share) - 1 for share in (2 / 3, 5 / 6, 1)})
        self.acts = {(part, side): self.capture(part, side) for part in PARTS for side in ("before", "after")}
        self.logprobs = cache(self._logprobs)
        self.first = {(part, side): self.first_tokens(part, side) for part in PARTS for side in ("before", "after")}

    def model(self, side: str) -> Model:
        """The model before or after training."""
        return self.pair.before if side == "before" else self.pair.after

    def capture(self, part: str, side: str) -> Activations:
        """The state of the last prompt token, which predicts the answer."""
        folder = self.study.folder / "stages" / f"states-{self.pair.name}-{part}-{side}"
        rows, size = self.pair.rows[part], self.batch_size
        return steerlab.capture(self.model(side), rows, layers=self.layers, batch_size=size, folder=folder).load()

    def _logprobs(self, part: str, side: str) -> Tensor:
        """Log-probabilities of the next token, `(input, token)`."""
        return next_logprobs(self.model(side), self.pair.rows[part], None, self.batch_size)

    def first_tokens(self, part: str, side: str) -> pd.Series:
        """The likeliest first token of each input's answer."""
        ids = [row.id for row in self.pair.rows[part]]

        def compute() -> pd.DataFrame:
            return pd.DataFrame({"example_id": ids, "token": self.logprobs(part, side).argmax(1).numpy()})

        found = self.study.stage(f"first-{self.pair.name}-{part}-{side}", compute)
        return found.set_index("example_id")["token"].astype(int)

    def dictionary(self, layer: int, seed: int, part: str = "fit", side: str = "before") -> ConceptDictionary:
        """The concepts of a part's states in one model."""
        return ConceptDictionary(layer, N_CONCEPTS, seed=seed).fit(self.acts[part, side])

    def shift(self, layer: int, seed: int) -> tuple[ConceptDictionary, RepresentationShift]:
        """The concepts before, and how they move."""
        concepts = self.dictionary(layer, seed)
        return concepts, representation_shift(concepts, self.acts["fit", "before"], self.acts["fit", "after"])

    def predict(self, name: str, layer: int, part: str, seed: int) -> Tensor:
        """The predicted change of each input's state, `(input, hidden)`."""
        old, new = (self.acts["fit", side].at(layer) for side in ("before", "after"))
        x, change = self.acts[part, "before"].at(layer), new - old
        if name == "own":
            return self.acts[part, "after"].at(layer) - x
        if name == "mean":
            return change.mean(0).expand(len(x), -1)
        if name == "ridge":
            weights, intercept = fit_ridge(old, change)
            return x @ weights + intercept
        if name == "answer":
            said, now = (self.first[one, "before"][self.ids(one)].to_numpy() for one in ("fit", part))
            means = {token: change[torch.from_numpy(said == token)].mean(0) for token in set(said)}
            return torch.stack([means.get(token, change.mean(0)) for token in now])
        concepts, shift = self.shift(layer, seed)
        vectors = shift.vectors if name == "concepts" else shift.vectors.roll(1 + seed, 0)
        return vectors[concepts.assign(x)]

    def ids(self, part: str) -> list[str]:
        """The example ids in the order of the states."""
        return [str(i) for i in self.acts[part, "before"].index["example_id"]]

    def measure(self, name: str, layer: int, part: str, seed: int) -> pd.DataFrame:
        """Of each input: the squared change and what is left of it, the divergence of the next token between the
        models and what is left of that, whether the likeliest token is the trained model's, and whether it changed.
        """
        rows, change = self.pair.rows[part], self.predict("own", layer, part, seed)
        predicted, ids = self.predict(name, layer, part, seed), self.ids(part)
        assert ids == [row.id for row in rows]
        steerer = P2S.from_table(layer, dict(zip(ids, predicted, strict=True)))
        now = next_logprobs(self.pair.before, rows, steerer, self.batch_size)
        was, wanted = self.logprobs(part, "before"), self.logprobs(part, "after")
        kl = {key: (wanted.exp() * (wanted - one)).sum(1) for key, one in (("before", was), ("left", now))}
        return pd.DataFrame({
            "example_id": ids, "square": change.square().sum(1).numpy(),
            "square_left": (change - predicted).square().sum(1).numpy(),
            "kl": kl["before"].numpy(), "kl_left": kl["left"].numpy(),
            "agrees": (now.argmax(1) == wanted.argmax(1)).float().numpy(),
            "changed": (was.argmax(1) != wanted.argmax(1)).float().numpy(),
        })  # fmt: skip

    def stage(self, name: str, layer: int, part: str, seed: int) -> pd.DataFrame:
        """`measure` as a stage."""
        return self.study.stage(
            f"{part}-{self.pair.name}-{name}-{layer}-{seed}", partial(self.measure, name, layer, part, seed)
        )

    def search(self) -> pd.DataFrame:
        """The share of the divergence taken away on validation inputs, for every predictor at every layer."""
        found = []
        for name, layer in product([one for one in PREDICTORS if one != "other_concept"], self.layers):
            measured = self.stage(name, layer, "validation", 0)
            one = {"pair": self.pair.name, "predictor": name, "layer": layer, "agrees": measured["agrees"].mean()}
            found.append(one | {key: taken_away(measured, key) for key in ("kl", "square")})
        return pd.DataFrame(found)


def next_logprobs(model: Model, rows: list[Example], steerer: P2S | None, batch_size: int) -> Tensor:
    """Log-probabilities of the first new token, steered at the last prompt token or not."""
    steer = () if steerer is None else Request(steerer, 1.0, "last")
    logits = steerlab.next_token_logits(model, rows, steer=steer, batch_size=batch_size, progress=False)
    return logits.double().log_softmax(-1)


def taken_away(measured: pd.DataFrame, key: str) -> float:
    """The share of a quantity that a prediction takes away; below 0 where it adds to it."""
    return float(1 - measured[f"{key}_left"].sum() / measured[key].sum())


def measure_test(run: PairStudy, layers: pd.Series, seeds: int) -> dict[str, Any]:
    """Every predictor at its layer on test inputs, and the difference of the concepts to each; inputs are resampled."""
    name, found, summary = run.pair.name, dict[str, pd.DataFrame](), dict[str, Any]()
    for predictor in PREDICTORS:
        layer, drawn = int(layers[predictor]), range(seeds if predictor in CLUSTERED else 1)
        several = pd.concat([run.stage(predictor, layer, "test", seed) for seed in drawn])
        found[predictor] = several.groupby("example_id", sort=False).mean()
        summary[f"{name}.{predictor}.layer"] = layer
    first = found["mean"]
    zero = {"square_left": first["square"], "kl_left": first["kl"], "agrees": 1 - first["changed"]}
    found["none"] = first.assign(**zero)
    tokens = run.first["test", "before"][list(first.index)].tolist()
    old = np.array([str(run.pair.before.tokenizer.decode([token])).lower() for token in tokens])
    for predictor, measured in found.items():
        summary[f"{name}.{predictor}.agrees"] = estimate(measured["agrees"].tolist(), 0)
        summary[f"{name}.{predictor}.nats_left"] = estimate(measured["kl_left"].tolist(), 0)
        for key in ("kl", "square"):
            summary[f"{name}.{predictor}.{key}"] = share_estimate(measured, key)
        if name == "colors":
            for group, chosen in (("purple", old == OLD), ("others", old != OLD)):
                summary[f"{name}.{predictor}.agrees_{group}"] = estimate(measured.loc[chosen, "agrees"].tolist(), 0)
        if predictor != "concepts":
            nats = paired_bootstrap(found["concepts"]["kl_left"], measured["kl_left"], seed=0)
            same = paired_bootstrap(found["concepts"]["agrees"], measured["agrees"], seed=0)
            summary[f"{name}.concepts_over_{predictor}.agrees"] = numbers(same)
            summary[f"{name}.concepts_over_{predictor}.nats_left"] = numbers(nats)
    return summary


def share_estimate(measured: pd.DataFrame, key: str) -> dict[str, float]:
    """The share that is taken away, with its interval over inputs."""
    removed = measured[key] - measured[f"{key}_left"]
    return numbers(bootstrap_ratio(removed, measured[key], n_boot=1000))


def describe_concepts(run: PairStudy, layer: int) -> pd.DataFrame:
    """Each concept: its shift, its words before, with the shift and in the trained model, how close the shift, and one
    shift for all, come to the trained model's concepts (found in other inputs), its examples in both models, and what
    its inputs are.

    `overlap_examples_*`: of the examples whose states in the trained model are nearest to the concept, unmoved, moved
    by one shift for all or by its own, the share that is among those of the trained model's concept.
    """
    concepts, shift = run.shift(layer, 0)
    after = run.dictionary(layer, 0, "validation", "after")
    mean = run.predict("mean", layer, "fit", 0)[:1].expand_as(shift.vectors)
    by_mean = replace(shift, vectors=mean).recovery(after)["recovered"].to_numpy()
    frame = shift.frame().merge(shift.recovery(after), on="concept").assign(recovered_by_mean=by_mean)
    options: dict[str, Any] = {"top": SHOWN, "stop_words": (), **WORDS[run.pair.name]}
    kept, partner = (torch.tensor(frame[key].tolist()) for key in ("concept", "partner"))
    words = {
        "before": concept_words(run.pair.before, concepts.concepts_[kept], **options),
        "predicted": concept_words(run.pair.after, shift.predicted()[kept], **options),
        "after": concept_words(run.pair.after, after.concepts_[partner], **options),
    }
    for key, several in words.items():
        frame[f"words_{key}"] = [" ".join(one) for one in several]
        if key != "after":
            pairs = zip(several, words["after"], strict=True)
            frame[f"overlap_{key}"] = [overlap(one, other) for one, other in pairs]
    moved = {"unmoved": concepts.concepts_, "mean": concepts.concepts_ + mean, "predicted": shift.predicted()}
    trained_top = _top_examples(run, after, "after", frame["partner"])
    for key, rows in moved.items():
        one = copy.copy(concepts)
        one.concepts_ = rows
        several = _top_examples(run, one, "after", frame["concept"])
        frame[f"overlap_examples_{key}"] = [overlap(*two) for two in zip(several, trained_top, strict=True)]
    for key, several in (("before", _top_examples(run, concepts, "before", frame["concept"])), ("after", trained_top)):
        frame[f"examples_{key}"] = [" ".join(ids[:SHOWN]) for ids in several]
    active = concepts.assign(run.acts["fit", "before"].at(layer)).numpy()
    first = [run.first["fit", side][run.ids("fit")].to_numpy() for side in ("before", "after")]
    frame["changed"] = [(first[0] != first[1])[active == k].mean() for k in frame["concept"]]
    labels = run.acts["fit", "before"].index["behavior"]
    counts = [labels[active == k].value_counts() for k in frame["concept"]]
    frame["inputs"] = [" ".join(f"{name}:{count}" for name, count in one.items()) for one in counts]
    return frame.assign(pair=run.pair.name, layer=layer)


def _top_examples(run: PairStudy, concepts: ConceptDictionary, side: str, chosen: pd.Series) -> list[list[str]]:
    """The examples that activate each chosen concept most, by their states in one model."""
    table = concept_examples(concepts, run.acts["fit", side], COMPARED).groupby("concept")["example_id"].apply(list)
    return [table.get(k, []) for k in chosen]


def find_regions(run: PairStudy, layer: int, frame: pd.DataFrame) -> dict[str, Any]:
    """The region that each concept's most active images need, in both models, as `regions.csv` with the images in
    `images.png` (a line for each concept, the first model's at the left); and how often it lies on the thing that the
    question is about, for test images of three or more things.
    """
    rows = {row.id: row for part in run.pair.rows.values() for row in part}
    dictionaries = {"before": run.dictionary(layer, 0), "after": run.dictionary(layer, 0, "validation", "after")}

    def strongest(name: str, side: str, ids: list[str]) -> pd.DataFrame:
        several, size = [rows[i] for i in ids], GRID**2 + 1
        compute = partial(concept_regions, run.model(side), dictionaries[side], several, grid=GRID, batch_size=size)
        found = run.study.stage(f"regions-{name}-{layer}", compute)
        return found.loc[found.groupby("example_id")["drop"].idxmax()].set_index("example_id")

    sheet, tables = Image.new("RGB", (2 * TILES * SIDE, SIDE * len(frame)), "white"), []
    for place, (side, key) in enumerate((("before", "concept"), ("after", "partner"))):
        several = [ids.split()[:TILES] for ids in frame[f"examples_{side}"]]
        top = strongest(f"top-{side}", side, [i for ids in several for i in ids])
        for line, (concept, ids) in enumerate(zip(frame[key], several, strict=True)):
            assert set(top.loc[ids, "concept"]) <= {concept}
            for tile, i in enumerate(ids):
                sheet.paste(open_image(rows[i].images[0]), (SIDE * (place * TILES + tile), SIDE * line))
            things = [rows[i].meta["boxes"].split(";")[0] for i in ids]
            placed = {"model": side, "line": line, "tile": range(len(ids)), "question": [rows[i].prompt for i in ids]}
            tables.append(top.loc[ids].reset_index().assign(**placed, thing=things))
    pd.concat(tables).round(4).to_csv(run.study.folder / "regions.csv", index=False)
    sheet.save(run.study.folder / "images.png")
    several = [row for row in run.pair.rows["test"] if row.meta["boxes"].count(";") >= 2]
    drawn = [several[i] for i in np.random.default_rng(0).permutation(len(several))[:100]]
    best = strongest("test", "before", [row.id for row in drawn])
    hits: dict[str, list[float]] = {key: [] for key in ("own", "own_by_chance", "any", "any_by_chance")}
    for row in drawn:
        inside = np.stack([_cells_inside(box) for box in row.meta["boxes"].split(";")])
        cell = int(best.loc[row.id, "row"]), int(best.loc[row.id, "column"])
        several_things = np.asarray(inside.any(axis=0))
        hits["own"].append(float(inside[0][cell]))
        hits["own_by_chance"].append(float(inside[0].sum() / several_things.sum()))
        hits["any"].append(float(several_things[cell]))
        hits["any_by_chance"].append(float(several_things.mean()))
    return {f"colors.region_on_thing.{key}": estimate(values, 0) for key, values in hits.items()}


def _cells_inside(box: str) -> NDArray[np.bool_]:
    """Which cells of the grid have their middle in a box."""
    left, top, side = map(int, box.split())
    middles = (np.arange(GRID) + 0.5) * SIDE / GRID
    return np.outer((middles >= top) & (middles < top + side), (middles >= left) & (middles < left + side))


def shift_part(study: Study, pair: Pair, args: argparse.Namespace) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Everything about one pair: numbers, concepts, the search."""
    run = PairStudy(study, pair, args.batch_size)
    grid = run.search()
    ranked = grid.sort_values("kl", ascending=False, kind="stable").groupby("predictor")["layer"].first()
    ranked["other_concept"] = ranked["concepts"]  # the control stands where the concepts stand
    summary, layer = measure_test(run, ranked, args.seeds), int(ranked["concepts"])
    frame = describe_concepts(run, layer)
    if pair.before.vision is not None:
        summary |= find_regions(run, layer, frame)
    overlaps = ["overlap_before", "overlap_predicted"]
    overlaps += [f"overlap_examples_{key}" for key in ("unmoved", "mean", "predicted")]
    for key in (*overlaps, "consistency", "consistency_others", "recovered", "recovered_by_mean"):
        # a concept with one member has no consistency with others
        known = frame[frame[key].notna()]
        summary[f"{pair.name}.{key}"] = round(float(np.average(known[key], weights=known["members"])), 4)
    return summary, frame, grid


def page(frame: pd.DataFrame, texts: dict[str, str]) -> str:
    """The concepts of both pairs in words and in the texts that activate them most."""
    lines = [
        "# Concepts before and after",
        "",
        "Scenarios: RepE (github.com/andyzoujm/representation-engineering, MIT).",
        "",
    ]
    for pair, several in frame.groupby("pair", sort=False):
        lines += [f"## {pair}", ""]
        for row in several.itertuples():
            lines.append(
                f"- concept {row.concept} ({row.members} inputs; {row.inputs}): **{row.words_before}** -> "
                f"**{row.words_predicted}** (trained: {row.words_after}); consistency {row.consistency_others:.2f}, "
                f"norm {row.norm:.1f}, answers changed {row.changed:.2f}"
            )
            for name, ids in (("before", row.examples_before), ("trained", row.examples_after)):
                lines += [f"    - {name}: {texts[i]}" for i in ids.split()[:TILES]]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Train the pairs, measure them, steer answers."""
    arguments = parser(__doc__, "results/representation_shift")
    arguments.set_defaults(batch_size=64)
    arguments.add_argument("--repe", type=Path, required=True, help="folder with the emotions of RepE (happiness.json)")
    arguments.add_argument("--seeds", type=int, default=3, help="how often concepts are found for the test")
    arguments.add_argument(
        "--layers", type=int, nargs="+", default=[3, 4, 5], choices=range(6), help="where answers are steered"
    )
    args = arguments.parse_args()
    args.layers = sorted(set(args.layers))
    n = args.limit or 600
    stages, device = Path(args.out) / "stages", args.device
    sizes = {part: min(n, most) for part, most in EMOTION.items()}
    pairs = [
        colors_pair(stages, {"fit": n, "validation": n // 2, "test": n}, args.seed, device),
        emotion_pair(args.model, args.repe, stages, sizes, args.seed, device),
    ]
    everything = [row for pair in pairs for part in PARTS for row in pair.rows[part]]
    identity = {"study": "representation_shift", "seed": args.seed, "limit": args.limit, "data": data_hash(everything)}
    identity |= {f"weights_{p.name}": [m.info()["weights"] for m in (p.before, p.after)] for p in pairs}
    identity |= {"training": TRAINING, "settings": repr((N_CONCEPTS, GRID, args.layers, ANSWER_SETTINGS))}
    study = Study(args.out, identity)
    summary, frames, grids = dict[str, Any](), [], []
    for pair in pairs:
        found, frame, grid = shift_part(study, pair, args)
        summary |= found
        frames.append(frame)
        grids.append(grid)
    steered, answers_grid, numbers_of_answers = steer_answers(study, pairs[0].before, args)
    concepts = pd.concat(frames, ignore_index=True)
    answered = steered.groupby(["method", "task", "type", "true", "own", "said"]).size().reset_index(name="questions")
    for name, table in {"concepts": concepts, "grid": pd.concat(grids), "answers_grid": answers_grid}.items():
        table.round(4).to_csv(study.folder / f"{name}.csv", index=False)
    origin = provenance(pairs[0].before, everything, args) | {"models": [pair.before.id for pair in pairs]}
    texts = {row.id: str(row.prompt) for row in everything}
    study.finish(answered, summary | numbers_of_answers, page(concepts, texts), origin)
    show_table("Concepts", concepts[["pair", "concept", "members", "norm", "words_before", "words_predicted"]])


if __name__ == "__main__":
    main()
