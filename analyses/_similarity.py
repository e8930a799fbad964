"""Tables of the vector similarity study, each a data frame in long form."""

from __future__ import annotations

import numpy as np
import pandas as pd
from _common import estimate

from steerlab import L2S, Activations, MeanDifference
from steerlab.analysis.cka import cka_matrix
from steerlab.analysis.geometry import geometry, map_2d, principal_angles
from steerlab.analysis.similarity import cosine_table, nearest_neighbors, norms, vectors_by_layer
from steerlab.methods import P2S, Context

DIMENSIONS = 5  # of the subspaces
PAPER = "LLaVA-1.5-7B, layer 15: .84 to .88 within, −.10 to .03 between (arXiv 2508.12815)"


def geometries(acts: Activations, group: str, seed: int) -> pd.DataFrame:
    """Mean cosines within and between groups at every layer, as in the paper's table."""
    return pd.concat([geometry(acts, layer, label=group, seed=seed) for layer in acts.layers], ignore_index=True)


def mean_cosines(acts: Activations) -> pd.DataFrame:
    """Cosines between all mean vectors, every behavior at every layer."""
    table = cosine_table(vectors_by_layer(acts))
    columns = {f"{part}_{side}": [name[i] for name in table[side]] for i, part in enumerate(("behavior", "layer"))
            for side in ("a", "b")}  # fmt: skip
    return pd.DataFrame(columns).assign(cosine=table["cosine"])


def lengths(acts: Activations) -> pd.DataFrame:
    """Norms of the mean vectors, absolute and as a share of the norm of the states they are added to."""
    table = norms(vectors_by_layer(acts))
    found = pd.DataFrame(table["name"].tolist(), columns=["behavior", "layer"]).assign(vector=table["norm"])
    states = {k: float(acts.by_example(k, side="prompt")[1].norm(dim=-1).mean()) for k in acts.layers}
    p2s_norms = {
        (behavior, k): float(acts.select(behavior=behavior).contrast(k)[1].norm(dim=-1).mean())
        for behavior in found["behavior"].unique() for k in acts.layers
    }  # fmt: skip
    found["p2s"] = [p2s_norms[key] for key in zip(found["behavior"], found["layer"], strict=True)]
    found["state"] = found["layer"].map(states)
    return found.assign(vector_to_state=found["vector"] / found["state"], p2s_to_state=found["p2s"] / found["state"])


def angles(acts: Activations, seed: int) -> pd.DataFrame:
    """Principal angles between the subspaces of behaviors at every layer; halves of one behavior as reference."""
    names = sorted(set(acts.index.loc[acts.index["side"] == "positive", "behavior"]))
    rows = []
    for layer in acts.layers:
        z = {name: acts.select(behavior=name).contrast(layer)[1] for name in names}
        order = {name: np.random.default_rng(seed).permutation(len(v)) for name, v in z.items()}
        half = {name: (z[name][order[name][::2]], z[name][order[name][1::2]]) for name in names}
        pairs = [(f"{name}, halves", *half[name]) for name in names]
        # halves here too, so that both kinds of pairs compare equally many vectors
        pairs += [(f"{a} – {b}", half[a][0], half[b][0]) for i, a in enumerate(names) for b in names[i + 1 :]]
        for pair, x, y in pairs:
            k = min(DIMENSIONS, len(x) - 1, len(y) - 1)
            for centered in (False, True):
                found = principal_angles(x, y, k, centered=centered)
                rows += [
                    {"layer": layer, "pair": pair, "centered": centered, "number": i + 1, "degrees": float(d)}
                    for i, d in enumerate(found)
                ]
    return pd.DataFrame(rows)


def layer_cka(acts: Activations) -> pd.DataFrame:
    """Linear CKA between the layers' contexts, in long form."""
    square = cka_matrix(acts).rename_axis("layer_a").rename_axis("layer_b", axis=1)
    return square.stack().rename("cka").reset_index()


def maps(acts: Activations, layer: int, read: int, seed: int) -> pd.DataFrame:
    """Contexts and contrast vectors of the inputs on their first two principal components."""
    found = []
    for kind, at, (ids, points) in (
        ("contexts", read, acts.by_example(read, side="prompt")),
        ("vectors", layer, acts.contrast(layer)),
    ):
        frame = map_2d(points, acts.labels(ids))
        first, second = frame.attrs["explained"]
        columns = {"topic": acts.labels(ids, "topic"), "explained_x": first, "explained_y": second}
        found.append(frame.assign(map=kind, layer=at, example_id=ids, **columns))
    return pd.concat(found, ignore_index=True)


def method_cosines(l2s: L2S, train: Activations, test: Activations) -> pd.DataFrame:
    """Cosines between the vectors of methods (L2S, mean, mean of the behavior, P2S) on unseen inputs."""
    layer = l2s.site.layer
    p2s = P2S(layer).fit(test)
    context = Context(p2s.ids_, test)
    behaviors = test.labels(p2s.ids_)
    means = {name: MeanDifference(layer, behaviors=[name]).fit(train).vector_ for name in sorted(set(behaviors))}
    contrasts, mean = p2s.vectors(context), MeanDifference(layer).fit(train).vectors(context)
    predicted = l2s.vectors(context)
    rows = []
    for i, (example_id, behavior) in enumerate(zip(p2s.ids_, behaviors, strict=True)):
        table = cosine_table(
            {"l2s": predicted[i], "mean": mean[i], "mean of its behavior": means[behavior], "p2s": contrasts[i]}
        )
        rows.append(table.assign(example_id=example_id, behavior=behavior))
    return pd.concat(rows, ignore_index=True)[["example_id", "behavior", "a", "b", "cosine"]]


def neighbors(l2s: L2S, test: Activations) -> pd.DataFrame:
    """Nearest unseen inputs by the vectors of L2S; column `chance` is the share of a shared behavior by chance."""
    found = nearest_neighbors(l2s, test)
    of = dict(zip(test.index["example_id"], test.index["behavior"], strict=True))
    return found.assign(behavior=found["example_id"].map(of), chance=found.attrs["chance"])


def by_behavior(methods: pd.DataFrame, model: str, layer: int) -> pd.DataFrame:
    """The cosines to P2S in the long form of the other studies, one row per measurement."""
    rows = methods[methods["b"] == "p2s"].rename(columns={"a": "method", "cosine": "value"})
    columns = {"model": model, "layer": layer, "alpha": "", "positions": "", "metric": "cos_to_p2s"}
    order = ["method", "model", "layer", "alpha", "positions", "example_id", "behavior", "metric", "value"]
    return rows.assign(**columns)[order].round({"value": 4})


def summary_of(frames: dict[str, pd.DataFrame], layer: int, seed: int) -> dict[str, object]:
    """The numbers of `summary.json`."""
    summary: dict[str, object] = {"layer": layer}
    for name in ("geometry", "topics"):
        for row in frames[name].query("layer == @layer").itertuples():
            numbers = {k: round(float(getattr(row, k)), 4) for k in ("low", "high", "shuffled")}
            value = {"value": round(float(row.cosine), 4), **numbers, "n": int(row.pairs)}
            summary[f"{name}.{row.kind}.{row.a}.{row.b}"] = value
    kinds = frames["geometry"].groupby(["layer", "kind"])["cosine"].mean().unstack()
    summary["geometry.within_minus_between"] = (kinds["within"] - kinds["between"]).round(4).to_dict()
    for (a, b), rows in frames["methods"].groupby(["a", "b"]):
        summary[f"cos.{a}.{b}"] = estimate(rows["cosine"].tolist(), seed)
    for (behavior, a, b), rows in frames["methods"].groupby(["behavior", "a", "b"]):
        summary[f"cos.{a}.{b}.{behavior}"] = estimate(rows["cosine"].tolist(), seed)
    for behavior, rows in frames["neighbors"].groupby("behavior"):
        summary[f"nearest.same_behavior.{behavior}"] = round(float(rows["same_behavior"].mean()), 4)
    summary["nearest.same_behavior"] = round(float(frames["neighbors"]["same_behavior"].mean()), 4)
    summary["nearest.chance"] = round(float(frames["neighbors"]["chance"].iloc[0]), 4)
    at = frames["norms"].query("layer == @layer").set_index("behavior")
    for column in ("vector", "p2s", "vector_to_state"):
        summary |= {f"norms.{column}.{b}": round(float(v), 4) for b, v in at[column].items()}
    for (pair, centered), rows in frames["angles"].query("layer == @layer").groupby(["pair", "centered"]):
        kind = "centered" if centered else "uncentered"
        summary[f"angles.{kind}.{pair}"] = [round(float(d), 1) for d in rows.sort_values("number")["degrees"]]
    return summary


def paper_table(frames: dict[str, pd.DataFrame], layer: int) -> str:
    """A page with the cosines within and between groups at one layer."""
    lines = [f"# Cosines of P2S vectors at layer {layer}", "", f"For comparison, {PAPER}.", ""]
    for name, heading in (("geometry", "By behavior"), ("topics", "Advice by topic")):
        lines += [f"## {heading}", "", "| pair | cosine | 95 % | labels shuffled | pairs |", "|---|---|---|---|---|"]
        for row in frames[name].query("layer == @layer").itertuples():
            pair = f"within {row.a}" if row.a == row.b else f"{row.a} – {row.b}"
            lines.append(
                f"| {pair} | {row.cosine:.2f} | {row.low:.2f} to {row.high:.2f} | {row.shuffled:.2f} | {row.pairs} |"
            )
        lines.append("")
    return "\n".join(lines)
