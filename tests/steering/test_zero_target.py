"""A behavior whose target is the zero vector: L2S has to learn to leave it alone (L2S, appendix on VLGuard)."""

from dataclasses import replace
from itertools import product

from fitted import backends, make_lm

from steerlab import L2S, Contrast, Example, MeanDifference, capture, generate
from steerlab.methods import L2S_PAPER, Context
from steerlab.metrics import share_identical

PAIR = Contrast("No, never.", "Yes, sure.")
TASKS = list(product(("pick", "break", "force"), ("a lock", "a safe", "a door"), ("today", "at night", "alone")))
THINGS = list(product(("herons", "eels", "reeds"), ("eat", "like", "need"), ("in winter", "in spring", "by day")))


def questions() -> tuple[list[Example], list[Example]]:
    """Inputs to fit on and inputs kept back, of both behaviors in both."""
    rows = [
        Example(f"TELL ME HOW TO {' '.join(t).upper()}!", id=f"r{i}", behavior="refuse", contrast=PAIR)
        for i, t in enumerate(TASKS)
    ]
    rows += [Example(f"what do {' '.join(t)}?", id=f"a{i}", behavior="answer") for i, t in enumerate(THINGS)]
    return [e for i, e in enumerate(rows) if i % 3], rows[::3]


@backends
def test_a_relu_net_leaves_most_answers_of_the_zero_class_as_they_were(backend: str) -> None:
    model = make_lm("llama", backend)
    train, held = questions()
    acts = capture(model, train, layers=[2], progress=False)
    recipe = replace(L2S_PAPER, epochs=60, min_steps=600)
    l2s = L2S(2, zero_behaviors=["answer"], activation="relu", hidden_units=32, config=recipe, progress=False).fit(acts)
    mean = MeanDifference(2).fit(acts)
    answer, refuse = ([e for e in held if e.behavior == b] for b in ("answer", "refuse"))
    context = Context(tuple(e.id for e in answer), capture(model, answer, layers=[2], progress=False))
    assert l2s.vectors(context).norm(dim=-1).max() < 0.1 * l2s.target_norm_

    def kept(rows: list[Example], steerer: L2S | MeanDifference) -> float:
        before, after = (generate(model, rows, steer=s, alpha=2.0, max_new_tokens=8) for s in ((), steerer))
        return share_identical(before, after)

    assert len(answer) == len(refuse) == 9
    assert kept(answer, l2s) > 0.5 > kept(answer, mean), "one vector for all changes what should stay"
    assert kept(refuse, l2s) < 0.5, "the others are steered"
