"""A model that reads driving scenes: does it see one changed object, and does a vector say it as well?

    python analyses/driving.py --data DATA/driving --out results/driving
    python figures/driving.py results/driving

One object of a scene is edited: a pedestrian more or less, a car less or nearer, the light turned. Two questions:

- Editing: does the model's caption change in this fact, and in no other?
- Steering: the states of the edited scene minus those of the scene, at the tokens of the vectors, are a contrast. Added
  to the scene as it is, does such a vector change the same fact? A vector for each token (the mean of the contrasts, or
  predicted by L2S from the scene's own states), one vector for all tokens, and the strongest simple rival: the mean of
  the scenes of a class, which a probe chooses (the classes are what the edited fact was before, such as the number of
  cars). As controls, L2S fitted to contrasts that changed places within these classes, and random directions of the
  same norm. The scene's own contrast, which needs the edited scene, is the most that can be reached. Site and strength
  are chosen for each method and edit on validation scenes, by captions in which that fact alone has changed; test
  scenes are looked at once.

Besides: what linear probes read off the states at each site, and how much of the encoder's attention the objects get
that the caption counts. The model is made by analyses/train_driving.py. An interrupted run resumes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import as_markdown, parser, provenance, show_table
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from train_driving import KINDS, PARTS, QUESTION, by_stretch, errors, evaluate, short_caption

import steerlab
from steerlab import L2S, Activations, Contrast, Example, MeanDifference, Request, Site
from steerlab._support.files import write_json
from steerlab.analysis.shuffling import shuffle_contrasts
from steerlab.analysis.study import Study
from steerlab.data import DrivingFacts, DrivingScene, data_hash, driving_scenes, edited_scenes, read_facts
from steerlab.data.driving import METERS
from steerlab.data.driving_captions import HAS_LIGHT, PERSON_X, light_of, visible_cars, visible_pedestrians
from steerlab.errors import DataError
from steerlab.methods import P2S, RandomDirection, RoutedMean, Steerer
from steerlab.models.model import Model
from steerlab.models.vectors.model import pack, unpack

FACTS = {
    "pedestrian added": "pedestrians", "pedestrian removed": "pedestrians", "car removed": "cars",
    "car nearer": "car_distance", "light turned": "light",
}  # fmt: skip
OTHERS = ("cars", "pedestrians", "light", "car_distance", "light_distance")
SITES, STRENGTHS = (Site(0, "block_in"), Site(0), Site(1)), (1.0, 1.5, 2.0)
ROUTED, SHUFFLED = "mean by class", "L2S, shuffled within classes"
METHODS = ("own vectors", "mean", "mean, one for all tokens", ROUTED, "L2S", SHUFFLED, "random")
RARE = 8  # scenes: smaller classes are put into the largest one
TOLERANCE, NEARER = 2.0, 3.0  # meters: distances that count as the same; the least that "nearer" must be
TOKENS = 60


@dataclass(frozen=True)
class Pair:
    """A scene and its edited version, with what is true of both."""

    example: Example
    edit: str
    before: DrivingFacts
    after: DrivingFacts

    @property
    def images(self) -> tuple[Any, ...]:
        """The edited scene."""
        return self.example.contrast.images if self.example.contrast else ()


def pairs_of(scenes: dict[int, DrivingScene], edit: str) -> list[Pair]:
    """The scenes in which the edit changes its fact; as examples with a contrast."""
    found = []
    for number, scene in scenes.items():
        other = edited_scenes(scene).get(edit)
        if other is None:
            continue
        before, after = read_facts(short_caption(scene)), read_facts(short_caption(other))
        contrast = Contrast.of_images(other, position="vectors")
        example = Example(QUESTION, contrast, id=f"{number}", images=(scene,), behavior=class_of(edit, before))
        pair = Pair(example, edit, before, after)
        if edit != "car nearer" or change(before.car_distance, after.car_distance) < -NEARER:
            found.append(pair)
    if len(found) < 2:
        raise DataError(f"{len(found)} of {len(scenes)} scenes have an object for {edit!r}: give a larger --limit")
    return with_common_classes(found)


def class_of(edit: str, before: DrivingFacts) -> str:
    """What the edited fact was: a number up to 5, tens of meters, or a color."""
    value = getattr(before, FACTS[edit])
    if isinstance(value, float):
        return f"{10 * int(value // 10)} m"
    return str(min(value, 5) if isinstance(value, int) else value)


def with_common_classes(pairs: list[Pair]) -> list[Pair]:
    """The pairs, with small classes put into the largest one, so that each has a mean and contrasts to swap."""
    counts = Counter(pair.example.behavior for pair in pairs)
    (largest, _), *_ = counts.most_common(1)
    return [
        pair if counts[pair.example.behavior] >= RARE else replace(pair, example=pair.example.replace(behavior=largest))
        for pair in pairs
    ]


def change(before: float | None, after: float | None) -> float:
    """The difference of two numbers; 0 where one is missing."""
    return 0.0 if before is None or after is None else after - before


def judged(pair: Pair, said_before: str, said_after: str) -> dict[str, float]:
    """Whether a caption moved in the edited fact as the truth did, by as much, and in which other facts it changed."""
    fact, old, new = FACTS[pair.edit], asdict(read_facts(said_before)), asdict(read_facts(said_after))
    before, after = asdict(pair.before), asdict(pair.after)
    if fact == "light":
        moved = exact = new[fact] == after[fact] and new[fact] != old[fact]
    else:
        wanted, found = change(before[fact], after[fact]), change(old[fact], new[fact])
        enough = abs(wanted) / 2 if fact == "car_distance" else 1.0
        moved = wanted * found > 0 and abs(found) >= enough
        exact = abs(found - wanted) <= (TOLERANCE if fact == "car_distance" else 0)
    others = [name for name in OTHERS if name != fact and not differs(before[name], after[name])]
    changed = [differs(old[name], new[name]) for name in others]
    alone = moved and not any(changed)
    return {"moved": float(moved), "exact": float(exact), "others": float(np.mean(changed)), "alone": float(alone)}


def differs(one: Any, other: Any) -> bool:
    """Whether two facts are not the same; meters within the tolerance are."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) > TOLERANCE
    return bool(one != other)


class Captions:
    """What the model says, kept as stages of the study."""

    def __init__(self, study: Study, model: Model, batch_size: int) -> None:
        self.study, self.model, self.batch_size = study, model, batch_size

    def of(self, examples: list[Example], steer: list[Request]) -> list[str]:
        """Captions of scenes."""
        options: dict[str, Any] = {"max_new_tokens": TOKENS, "batch_size": self.batch_size, "progress": False}
        return list(steerlab.generate(self.model, examples, steer=steer, **options).texts)

    def edited(self, part: str, pairs: list[Pair]) -> pd.DataFrame:
        """Captions of scenes and of their edited versions."""

        def compute() -> pd.DataFrame:
            edited = [p.example.replace(images=p.images, contrast=None) for p in pairs]
            texts = [self.of([p.example for p in pairs], []), self.of(edited, [])]
            return pd.DataFrame({"id": [p.example.id for p in pairs], "before": texts[0], "after": texts[1]})

        return self.study.stage(f"edited-{part}-{pairs[0].edit}", compute)

    def steered(self, part: str, pairs: list[Pair], setting: Setting, steerers: Any) -> list[str]:
        """Captions of the scenes as they are, steered at the tokens of the vectors."""

        def compute() -> pd.DataFrame:
            requests = [Request(one, setting.alpha, at) for at, one in steerers().items()]
            return pd.DataFrame({"text": self.of([pair.example for pair in pairs], requests)})

        found = self.study.stage(f"steered-{part}-{pairs[0].edit}-{setting}", compute)
        return found["text"].astype(str).tolist()


@dataclass(frozen=True)
class Setting:
    """A method, where it steers and how strongly."""

    method: str
    site: Site
    alpha: float

    def __str__(self) -> str:
        return f"{self.method}-{self.site}-{self.alpha:g}"


def captured(model: Model, pairs: list[Pair], site: Site) -> dict[str, Activations]:
    """Contrasts at each token of the vectors, and their mean, with the last token at all layers as context."""
    n = len(model.encode(QUESTION, images=pairs[0].example.images).kind("image"))
    examples, every = [pair.example for pair in pairs], list(range(model.n_layers))
    options: dict[str, Any] = {"batch_size": 64, "progress": False}
    at = ["vectors", *(f"vectors[{k}]" for k in range(n))]
    acts = steerlab.capture(model, examples, layers=[*every, site], positions=at, context="last", **options)
    return {name: acts.select(position=[name, "last"]) for name in at}


def fitted(method: str, acts: dict[str, Activations], site: Site, n_layers: int) -> dict[str, Steerer]:
    """The steerers of a method by the position that each one steers."""
    makers: dict[str, Any] = {
        "own vectors": lambda k: P2S(site),
        "mean": lambda k: MeanDifference(site),
        "mean, one for all tokens": lambda k: MeanDifference(site),
        "L2S": lambda k: L2S(site, context_layer=range(n_layers), net="linear"),
        ROUTED: lambda k: RoutedMean(site, context_layer=range(n_layers)),
        SHUFFLED: lambda k: L2S(site, context_layer=range(n_layers), net="linear"),
        "random": lambda k: RandomDirection(site, seed=k),
    }
    one = method.endswith("all tokens")
    chosen = {at: rows for at, rows in acts.items() if (at == "vectors") == one}
    if method == SHUFFLED:
        chosen = {at: shuffle_contrasts(rows) for at, rows in chosen.items()}
    return {at: makers[method](k).fit(rows) for k, (at, rows) in enumerate(chosen.items())}


def steering(captions: Captions, pairs: dict[str, list[Pair]]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A row for each method and test pair of an edit, at the setting chosen on validation pairs; and the settings."""
    model, edit = captions.model, pairs["train"][0].edit
    kept: dict[tuple[str, Site, str], dict[str, Steerer]] = {}

    def steerers(setting: Setting, part: str) -> dict[str, Steerer]:
        known = part if setting.method == "own vectors" else "train"  # the oracle needs the edited scenes themselves
        key = (setting.method, setting.site, known)
        if key not in kept:
            acts = captured(model, pairs[known], setting.site)
            for method in METHODS if known == "train" else [setting.method]:
                kept[method, setting.site, known] = fitted(method, acts, setting.site, model.n_layers)
        return kept[key]

    def measured(setting: Setting, part: str) -> pd.DataFrame:
        plain = captions.edited(part, pairs[part])["before"].astype(str).tolist()
        texts = captions.steered(part, pairs[part], setting, lambda: steerers(setting, part))
        rows = [judged(*three) for three in zip(pairs[part], plain, texts, strict=True)]
        ids = [pair.example.id for pair in pairs[part]]
        return pd.DataFrame(rows).assign(edit=edit, method=setting.method, id=ids, text=texts)

    found, settings = [], {}
    for method in METHODS:
        tried = {
            one: measured(one, "validation") for one in (Setting(method, *both) for both in product(SITES, STRENGTHS))
        }
        best = max(tried, key=lambda one: (tried[one]["alone"].mean(), tried[one]["moved"].mean(), -one.alpha))
        reached = round(float(tried[best]["alone"].mean()), 4)
        settings[method] = {"site": str(best.site), "alpha": best.alpha, "validation": reached}
        found.append(measured(best, "test"))
    return pd.concat(found, ignore_index=True), settings


def nearest_person(scene: DrivingScene) -> float:
    """Meters to the nearest pedestrian in view; NaN without one."""
    rows = scene.pedestrians[visible_pedestrians(scene), PERSON_X : PERSON_X + 2]
    return float(np.linalg.norm(rows, axis=1).min() * METERS) if len(rows) else np.nan


def probes(model: Model, scenes: dict[str, dict[int, DrivingScene]]) -> pd.DataFrame:
    """The mean error of ridge probes on test scenes, for each site, and of the training median."""
    hf: Any = model.hf
    n_blocks = len(hf.encoder.blocks)
    names = ["objects", *(f"latents {k}" for k in range(n_blocks - 2)), "queries"]
    sites: list[tuple[str, Any, str]] = [(name, Site(k, part="vision"), "images") for k, name in enumerate(names)]
    sites += [("projected", Site(0, part="projector"), "images")]
    sites += [(f"block {k}, {at}", Site(k), at) for at in ("vectors", "last") for k in range(model.n_layers)]
    truth = {
        part: pd.DataFrame({
            "cars": [len(visible_cars(s)) for s in some.values()],
            "pedestrians": [len(visible_pedestrians(s)) for s in some.values()],
            "nearest pedestrian (m)": [nearest_person(s) for s in some.values()],
        })
        for part, some in scenes.items()
    }  # fmt: skip
    rows = []
    for name, site, position in sites:
        states = {
            part: steerlab.capture(
                model, [Example(QUESTION, id=str(n), images=(s,)) for n, s in some.items()], layers=[site],
                positions=position, batch_size=64, progress=False,
            ).values[:, 0].double().numpy()
            for part, some in scenes.items() if part != "validation"
        }  # fmt: skip
        for target in truth["test"]:
            known, wanted = truth["train"][target].notna(), truth["test"][target].dropna()
            probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 15)))
            probe.fit(states["train"][known], truth["train"][target][known])
            error = np.abs(probe.predict(states["test"][wanted.index]) - wanted).mean()
            constant = np.abs(truth["train"][target].median() - wanted).mean()
            rows.append({"site": name, "target": target, "error": error, "without_looking": constant})
    return pd.DataFrame(rows).round(4)


def attention(model: Model, scenes: dict[int, DrivingScene]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """How well the encoder's attention, rolled out, tells the objects that the caption counts; and the attention."""
    hf: Any = model.hf
    sizes = hf.config.sizes
    tensors = unpack(torch.stack([pack(scene.tensors, sizes) for scene in scenes.values()]), sizes)
    ego = tensors.pop("ego")
    with torch.no_grad():
        rollout = hf.encoder(tensors, ego)[1].numpy()
    start, found, by_kind = len(next(iter(scenes.values())).route), {}, {}
    for kind, seen_of in zip(KINDS, (visible_pedestrians, visible_cars), strict=True):
        rows = np.stack([getattr(scene, kind) for scene in scenes.values()])
        weights = rollout[:, start : start + rows.shape[1]]
        start, by_kind[kind] = start + rows.shape[1], weights
        seen = np.zeros(rows.shape[:2], dtype=bool)
        for i, scene in enumerate(scenes.values()):
            seen[i, seen_of(scene)] = True
        used, first = rows[..., 0] > 0, 2 if kind == "pedestrians" else 3
        near = -np.linalg.norm(rows[..., first : first + 2], axis=-1)
        found[f"{kind}.attention"] = round(float(roc_auc_score(seen[used], weights[used])), 4)
        found[f"{kind}.nearness"] = round(float(roc_auc_score(seen[used], near[used])), 4)
    return found, by_kind


def shown_scenes(
    scenes: dict[int, DrivingScene], weights: dict[str, np.ndarray], edits: dict[str, pd.DataFrame], found: pd.DataFrame
) -> list[dict[str, Any]]:
    """For the figure: the first test scene of each edit in which something else stands than in those before."""
    order, shown, taken = list(scenes), [], set()
    for edit, captions in edits.items():
        row = next((r for r in captions.itertuples() if r.id not in taken), next(captions.itertuples()))
        taken.add(row.id)
        one, place = scenes[int(row.id)], order.index(int(row.id))
        objects = []
        for version, scene in (("before", one), ("after", edited_scenes(one)[edit])):
            for kind, first, seen in (
                ("pedestrians", 2, visible_pedestrians(scene)),
                ("vehicles", 3, visible_cars(scene)),
            ):
                rows = getattr(scene, kind)
                objects += [
                    {"version": version, "kind": kind, "x": round(float(rows[i, first] * METERS), 2),
                     "y": round(float(rows[i, first + 1] * METERS), 2), "in_view": i in seen,
                     "attention": round(float(weights[kind][place, i]), 4) if version == "before" else None}
                    for i in np.flatnonzero(rows[:, 0] > 0)
                ]  # fmt: skip
        said = found[(found["edit"] == edit) & (found["id"].astype(str) == str(row.id))].set_index("method")["text"]
        shown.append({
            "edit": edit, "scene": int(row.id), "objects": objects,
            "route": (one.route[:, :2] * METERS).round(1).tolist(),
            "lights": [place_of_light(one), place_of_light(edited_scenes(one)[edit])],
            "true": [short_caption(one), short_caption(edited_scenes(one)[edit])], "before": row.before,
            "after": row.after, "steered": {name: said[name] for name in ("mean", ROUTED, "L2S")},
        })  # fmt: skip
    return shown


def edited_and_steered(
    captions: Captions, scenes: dict[str, dict[int, DrivingScene]], seed: int
) -> tuple[dict[str, Any], dict[str, pd.DataFrame], pd.DataFrame]:
    """The summary of both questions, the captions of edited test scenes, and a row for each steered caption."""
    summary: dict[str, Any] = {}
    edits: dict[str, pd.DataFrame] = {}
    steered = []
    for edit in FACTS:
        pairs = {part: pairs_of(some, edit) for part, some in scenes.items()}
        edits[edit] = captions.edited("test", pairs["test"]).astype(str)
        texts = zip(edits[edit]["before"], edits[edit]["after"], strict=True)
        by_edit = pd.DataFrame([judged(p, *both) for p, both in zip(pairs["test"], texts, strict=True)])
        frames = [int(pair.example.id) for pair in pairs["test"]]
        summary |= {f"edited.{edit}.{name}": by_stretch(by_edit[name], frames, seed) for name in by_edit}
        found, settings = steering(captions, pairs)
        steered.append(found)
        summary |= {f"setting.{edit}.{method}": setting for method, setting in settings.items()}
        summary |= shares(found, f"steered.{edit}", seed)
        print(f"{edit}: { ({part: len(some) for part, some in pairs.items()}) } pairs, {settings}", flush=True)
    every = pd.concat(steered, ignore_index=True)
    return summary | shares(every, "steered.all", seed), edits, every


def shares(found: pd.DataFrame, name: str, seed: int) -> dict[str, Any]:
    """The measures of each method, and L2S minus its rivals on the same scenes."""
    rows = {str(method): some for method, some in found.groupby("method")}
    summary: dict[str, Any] = {
        f"{name}.{method}.{measure}": by_stretch(some[measure], some["id"].astype(int), seed)
        for method, some in rows.items() for measure in ("moved", "exact", "others", "alone")
    }  # fmt: skip
    for rival in ("mean", ROUTED, SHUFFLED):
        ours, theirs = (rows[one].set_index(["edit", "id"])["alone"] for one in ("L2S", rival))
        difference = (ours - theirs).reset_index()
        summary[f"{name}.L2S_over_{rival}.alone"] = by_stretch(difference["alone"], difference["id"].astype(int), seed)
    return summary


def place_of_light(scene: DrivingScene) -> dict[str, Any] | None:
    """Where the route's traffic light stands, in meters, and its state."""
    light = light_of(scene)
    if light is None:
        return None
    x, y = scene.route[np.flatnonzero(scene.route[:, HAS_LIGHT] > 0)[0], :2] * METERS
    return {"x": round(float(x), 1), "y": round(float(y), 1), "state": light[0]}


def main() -> None:
    """Edit, steer, probe, and write the results."""
    arguments = parser(__doc__, "results/driving")
    arguments.add_argument("--data", required=True, help="folder with scenes.safetensors and scenes.jsonl.gz")
    arguments.set_defaults(batch_size=64, max_new_tokens=TOKENS, model="driving-lm")
    args = arguments.parse_args()
    records = driving_scenes(args.data)
    # neighboring frames are nearly the same: every second one
    scenes = {part: {i: records[i].scene for i in range(*bounds, 2)[: args.limit]} for part, bounds in PARTS.items()}
    model = steerlab.load(args.model, device=args.device, backend="hooks")
    everything = [Example(QUESTION, id=str(i), images=(s,)) for some in scenes.values() for i, s in some.items()]
    identity = {"study": "driving", "weights": model.info()["weights"], "data": data_hash(everything)}
    study = Study(args.out, identity | {"sites": [str(s) for s in SITES], "strengths": STRENGTHS, "seed": args.seed})
    captions = Captions(study, model, args.batch_size)
    summary, edits, found = edited_and_steered(captions, scenes, args.seed)
    test = [records[i].scene for i in range(*PARTS["test"])]
    captioned = study.stage("captions", lambda: evaluate(model, test, args.batch_size))
    summary |= {f"captions.{name}": one for name, one in errors(captioned, PARTS["test"], args.seed).items()}
    probed = study.stage("probes", lambda: probes(model, scenes))
    auc, weights = attention(model, scenes["test"])
    summary |= {"probes": probed.to_dict("records"), "attention_auc": auc}
    write_json(study.folder / "scenes.json", {"scenes": shown_scenes(scenes["test"], weights, edits, found)})
    page = {
        f"{edit}, scene {row.id}": {"before": str(row.before), "after the edit": str(row.after)}
        for edit, table in edits.items() for row in table.head(3).itertuples()
    }  # fmt: skip
    text = as_markdown("Captions before and after an edit", page)
    study.finish(found.drop(columns="text"), summary, text, provenance(model, everything, args))
    show_table("Steered, on test scenes", found.groupby(["edit", "method"])[["moved", "others", "alone"]].mean())


if __name__ == "__main__":
    main()
