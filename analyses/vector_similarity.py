"""Similarity of steering vectors between inputs, behaviors, layers and methods, on the built-in prompts.

    python analyses/vector_similarity.py --model smollm2            # reads every layer; nothing is generated
    python figures/vector_similarity.py results/vector_similarity

P2S vectors are the contrast vectors of the inputs. Their cosines within and between behaviors are what the L2S paper
reports for LLaVA. Here they have intervals, for every layer, once by behavior and once with advice split by topic.
"""

from __future__ import annotations

from _common import limit_per_group, parser, provenance, show_table
from _similarity import (
    angles,
    by_behavior,
    geometries,
    layer_cka,
    lengths,
    maps,
    mean_cosines,
    method_cosines,
    neighbors,
    paper_table,
    summary_of,
)

import steerlab
from steerlab import L2S
from steerlab.analysis.study import Study
from steerlab.data import demo_set

LAYER, READ = 16, 22  # the layers that the demo's L2S steers and reads
CSVS = ("geometry", "topics", "cosines", "norms", "angles", "cka", "maps", "methods", "neighbors")


def main() -> None:
    """Capture once, write one CSV per comparison."""
    arguments = parser(__doc__, "results/vector_similarity")
    arguments.set_defaults(batch_size=32)
    args = arguments.parse_args()
    rows = limit_per_group(demo_set(seed=args.seed), args.limit)
    model = steerlab.load(args.model, device=args.device)
    study = Study(
        args.out,
        {
            "study": "vector_similarity",
            "seed": args.seed,
            "limit": args.limit,
            "model": args.model,
            "weights": model.info()["weights"],
            "at": [LAYER, READ],
        },
    )
    folder = study.folder / "stages" / "acts"
    acts = steerlab.capture(model, rows, folder=folder, layers="all", batch_size=args.batch_size).load()
    acts.index["topic"] = acts.index["example_id"].map({e.id: e.meta.get("topic") or e.behavior for e in rows})
    layer, read = (min(at, model.n_layers - 1) for at in (LAYER, READ))
    train, test = acts.select(split="train"), acts.select(split="test")
    unfitted = L2S(layer, net="mlp", context_layer=read, zero_behaviors=["answer"], seed=args.seed, progress=False)
    l2s = unfitted.fit(train)

    frames = {
        "geometry": study.stage("geometry", lambda: geometries(acts, "behavior", args.seed)),
        "topics": study.stage("topics", lambda: geometries(acts, "topic", args.seed)),
        "cosines": study.stage("cosines", lambda: mean_cosines(acts)),
        "norms": study.stage("norms", lambda: lengths(acts)),
        "angles": study.stage("angles", lambda: angles(acts, args.seed)),
        "cka": study.stage("cka", lambda: layer_cka(acts)),
        "maps": study.stage("maps", lambda: maps(acts, layer, read, args.seed)),
        "methods": study.stage("methods", lambda: method_cosines(l2s, train, test)),
        "neighbors": study.stage("neighbors", lambda: neighbors(l2s, test)),
    }
    for name, frame in frames.items():
        frame.to_csv(study.folder / f"{name}.csv", index=False, float_format="%.4f")
    results = by_behavior(frames["methods"], args.model, layer)
    summary = summary_of(frames, layer, args.seed)
    study.finish(results, summary, paper_table(frames, layer), provenance(model, rows, args))
    show_table(f"Cosines of P2S vectors at layer {layer}", frames["topics"].query("layer == @layer").iloc[:, 2:])
    print(f"{args.out}: {', '.join(f'{name}.csv' for name in CSVS)}, results.csv, summary.json, examples.md")


if __name__ == "__main__":
    main()
