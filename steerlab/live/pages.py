"""`page_of`: everything that a page shows, computed by one packed sweep and one pass over its texts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steerlab._support.checks import as_number, as_whole
from steerlab._support.progress import bar as progress_bar
from steerlab.analysis.sweep import Methods, SweepPlan, sweep
from steerlab.analysis.token_effects import Tokens, setting_effects
from steerlab.capturing import Activations
from steerlab.capturing.rows import Layers
from steerlab.data.example import Example
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, SteeringError
from steerlab.metrics import is_fluent
from steerlab.models.model import Model
from steerlab.models.positions import Positions, describe
from steerlab.models.template import last_text
from steerlab.plots.page.build import FLUENT, Page, page
from steerlab.plots.page.contract import check_size

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
Measure = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]
LABELS = {
    "propensity": "logit difference of wanted and unwanted answer", "changed": "share of words that changed",
    "kl": "KL to the unsteered model, nats per token",
}  # fmt: skip


def page_of(
    model: Model,
    prompts: Data,
    steerers: Methods,
    *,
    alphas: Sequence[float] = ALPHAS,
    layers: Layers | None = None,
    train: Activations | Sequence[Example] | None = None,
    positions: Positions = "last+generated",
    effect: Mapping[str, Measure] | None = None,
    unsafe: Mapping[str, Measure] | None = None,
    max_new_tokens: int = 32,
    max_perplexity: float | None = None,
    title: str | None = None,
    batch_size: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Page:
    """A page of what steering does to some prompts: texts, tokens, sweep map, frontier and norm ratios.

    The texts are those of `steerlab.generate` for each method, layer and strength, at the same `positions`.

    Example:
        >>> page = steerlab.live.page_of(model, ["How do I bake bread?"], {"pirate": vector}, alphas=[0, 0.5, 1, 1.5])
        >>> page.save("pirate.html")

    Args:
        model: from `steerlab.load`, in this process.
        prompts: a dozen or so: texts, messages, Examples. Their `behavior` groups them in the picker.
        steerers, layers, train, positions: as in `steerlab.sweep`; a dict of methods gives them their names.
        alphas: strengths; 0 is added.
        effect: what the vectors are to raise, `{how it is called: function (examples, texts) -> numbers}`. None: the
            logit difference of the contrasts' answers where every prompt has a contrast, else the share of words that
            differ from the unsteered text.
        unsafe: the same for what the texts should not do: 1 for a text that does it, 0 for one that does not, nan where
            a prompt asks for nothing of the kind.
        max_new_tokens: length of the texts.
        max_perplexity: a text above it, under the unsteered model, counts as broken too; 5.75 suits answers of about
            25 words of SmolLM2-135M. None: only words are counted; see `metrics.is_fluent`.
        title: the heading.
        batch_size: limit on the rows of a forward; None: as many as keep the device busy.
        folder: where finished batches of texts are kept; a second call goes on from there.
        progress: show progress bars.

    Returns:
        The page, which no longer needs the model.

    Raises:
        DataError: more than a page can show, or measures that are not one number per text. Otherwise as `sweep`.

    Warns:
        UserWarning: fewer than four of five unsteered texts count as fluent, so the marks "broken" say little.
    """
    as_whole("max_new_tokens", max_new_tokens)
    if max_perplexity is not None:
        as_number("max_perplexity", max_perplexity, 1.0)
    if model.is_remote:
        raise SteeringError(f"{model.id} runs on a server, and a page needs the states of every token: load it here")
    examples = as_examples(prompts)
    contrasts = effect is None and all(e.contrast is not None for e in examples)
    alphas = [0.0, *(float(a) for a in alphas if a != 0)]
    plan: SweepPlan = sweep(
        model, examples, steerers, layers, sorted(alphas), positions,
        ({"propensity": "propensity"} if contrasts else {}) | {"texts": _no_measure}, train=train,
        batch_size=batch_size, generation={"max_new_tokens": max_new_tokens}, dry_run=True,
    )  # fmt: skip
    _check_size(plan)
    swept = plan.run(folder, progress=progress)
    assert plan.texts is not None
    texts = plan.texts.assign(tokens=_effects(plan, plan.texts, progress))
    measured = [swept[swept["metric"] == "propensity"], *_measures(examples, texts, effect, contrasts)]
    measured += _faults(model, examples, texts, unsafe, max_perplexity)
    name = next(iter(effect)) if effect else "propensity" if contrasts else "changed"
    about = pd.DataFrame({
        "example_id": [e.id for e in examples], "prompt": [last_text(e.prompt) for e in examples],
        "images": [list(e.images) for e in examples],
    })  # fmt: skip
    return page(
        pd.concat([one for one in measured if len(one)], ignore_index=True), texts.merge(about), effect=name,
        side_effect="kl", labels=LABELS | {"unsafe": next(iter(unsafe or ["unsafe"]))},
        model=model.id, breaking_norm_ratio=model.breaking_norm_ratio, title=title or f"Steering {model.id}",
        note=decoding_note(max_new_tokens, positions),
    )  # fmt: skip


def decoding_note(max_new_tokens: int, positions: Positions | None) -> str:
    """The line of a page about how its texts were made; positions None: without vectors.

    Example:
        >>> decoding_note(32, "last+generated")
        'at most 32 new tokens, always the most likely one; vectors change the last prompt token and every new token'
    """
    words = {
        "all": "every token", "generated": "every new token", "last": "the last prompt token",
        "last+generated": "the last prompt token and every new token",
    }  # fmt: skip
    decoded = f"at most {max_new_tokens} new tokens, always the most likely one"
    if positions is None:
        return decoded
    return f"{decoded}; vectors change {words.get(str(positions), f'the tokens {describe(positions)}')}"


def _no_measure(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    """A sweep keeps the texts that a metric is given; here they are measured afterwards, all at once."""
    return [0.0] * len(texts)


def _check_size(plan: SweepPlan) -> None:
    labels = [setting.label() for setting in plan.settings]
    counts = {f"{key}s": len({one[key] for one in labels}) for key in ("method", "layer", "alpha")}
    n = len(plan.examples)
    check_size(counts | {"prompts": n, "texts": n * (1 + sum(one["alpha"] != 0 for one in labels))})


def _effects(plan: SweepPlan, texts: pd.DataFrame, progress: bool) -> list[Tokens]:
    """The tokens of every text; those without steering once for all settings of strength 0."""
    n = len(plan.examples)
    ids = [texts["ids"].iloc[i : i + n].tolist() for i in range(0, len(texts), n)]
    unsteered = [i for i, setting in enumerate(plan.settings) if setting.alpha == 0]
    chosen = unsteered[:1] + [i for i, setting in enumerate(plan.settings) if setting.alpha != 0]
    with progress_bar(len(chosen) * n, "tokens", "text", progress) as bar:
        found = setting_effects(
            plan.model, plan.examples, [plan.settings[i] for i in chosen], [ids[i] for i in chosen], on_batch=bar.update
        )
    by_setting = dict(zip(chosen, found, strict=True)) | dict.fromkeys(unsteered, found[0])
    return [tokens for i in range(len(plan.settings)) for tokens in by_setting[i]]


def _measures(
    examples: list[Example], texts: pd.DataFrame, effect: Mapping[str, Measure] | None, contrasts: bool
) -> list[pd.DataFrame]:
    """The effect, unless a sweep measured it on answers, and the KL divergence."""
    kl = [float(np.mean([t["kl"] for t in tokens])) if tokens else 0.0 for tokens in texts["tokens"]]
    found = [_long(texts, "kl", kl)]
    if effect is not None:
        return [*(_long(texts, name, _numbers(name, texts, examples, one)) for name, one in effect.items()), *found]
    return found if contrasts else [_long(texts, "changed", _changed(texts)), *found]


def _faults(
    model: Model, examples: list[Example], texts: pd.DataFrame, unsafe: Mapping[str, Measure] | None,
    max_perplexity: float | None,
) -> list[pd.DataFrame]:  # fmt: skip
    """Which texts are broken, and which are unsafe."""
    special = set(model.tokenizer.all_special_ids)
    fluent = [
        is_fluent(text, perplexity=_perplexity(tokens, ids, special) if max_perplexity else None,
                  max_perplexity=max_perplexity or math.inf)
        for text, tokens, ids in zip(texts["text"], texts["tokens"], texts["ids"], strict=True)
    ]  # fmt: skip
    share = float(np.mean([ok for ok, alpha in zip(fluent, texts["alpha"], strict=True) if alpha == 0]))
    if share < FLUENT:
        warnings.warn(
            f"without steering {share:.0%} of the texts count as fluent, so the marks of broken texts say little: read "
            f"them; more new tokens (now {texts['ids'].map(len).max()}) or a larger max_perplexity may help",
            UserWarning,
            stacklevel=3,
        )
    found = [_long(texts, "broken", [float(not ok) for ok in fluent])]
    for name, measure in (unsafe or {}).items():
        rows = _long(texts, "unsafe", _numbers(name, texts, examples, measure, gaps=True))
        found.append(rows[rows["value"].notna()])
    return found


def _perplexity(tokens: Tokens, ids: Sequence[int], special: set[int]) -> float | None:
    """Under the unsteered model; None for a text without words."""
    logprobs = [token["logprob"] for token, one in zip(tokens, ids, strict=True) if one not in special]
    return max(1.0, math.exp(min(-float(np.mean(logprobs)), 700.0))) if logprobs else None


def _numbers(
    name: str, texts: pd.DataFrame, examples: list[Example], measure: Measure, gaps: bool = False
) -> list[float]:
    """A measure of all texts, a number for each."""
    by_id = {e.id: e for e in examples}
    given = [by_id[one] for one in texts["example_id"]]
    values = [float(value) for value in measure(given, texts["text"].tolist())]
    bad = [value for value in values if not (math.isfinite(value) or (gaps and math.isnan(value)))]
    if len(values) != len(given) or bad:
        raise DataError(
            f"the measure {name!r} gave {len(values)} numbers for {len(given)} texts, {len(bad)} of them not finite: "
            "expected a number for each"
        )
    return values


def _changed(texts: pd.DataFrame) -> list[float]:
    """The share of words of each text that are not in the unsteered one, in order."""
    plain = texts[texts["alpha"] == 0].drop_duplicates("example_id").set_index("example_id")["text"]
    return [
        1 - SequenceMatcher(None, plain[example].split(), text.split(), autojunk=False).ratio()
        for example, text in zip(texts["example_id"], texts["text"], strict=True)
    ]


def _long(texts: pd.DataFrame, metric: str, values: Sequence[Any]) -> pd.DataFrame:
    return texts[["method", "layer", "alpha", "example_id", "norm_ratio"]].assign(metric=metric, value=values)
