"""The training of KL-then-steer: LoRA on a copy of the model, whose steered forwards are to stay what they were."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from steerlab._support.checks import as_number, as_seed, as_texts
from steerlab._support.contents import content_fingerprint
from steerlab._support.files import fingerprint
from steerlab._support.progress import bar as progress_bar
from steerlab.capturing.rows import Layers, as_sites, encode_answer
from steerlab.data.example import data_hash
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, SteeringError
from steerlab.methods.kts.behavior_vectors import SIDES, BehaviorVectors, MakeEstimator, edits_for
from steerlab.methods.kts.checkpoint import Checkpoint
from steerlab.methods.kts.config import KTSConfig
from steerlab.methods.kts.objective import PairedForwards, batches_of
from steerlab.methods.mean import MeanDifference
from steerlab.methods.model_edit import ModelEdit, adapt, adapter_weights, describe_adapter, restore_weights
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.model import Model
from steerlab.models.ready import check_ready
from steerlab.models.sites import Site

COLUMNS = ["step", "loss", "kl_steered", "kl_unsteered", "effect_kept", "learning_rate"]


def kl_then_steer(
    model: Model,
    benign: Data,
    answers: Sequence[str],
    behaviors: Mapping[str, Data],
    *,
    layers: Layers,
    keep: Mapping[str, Data] | None = None,
    estimator: MakeEstimator = MeanDifference,
    config: KTSConfig | None = None,
    validation: float = 0.2,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ModelEdit:
    """Train a model so that steering it changes its answers to benign texts less.

    Each step steers the model with a behavior's vectors and a random strength, and lowers the KL between its next-token
    distributions and those of the unsteered original. Only a LoRA adapter is trained, on a copy. This loss alone is
    smallest if the model undoes the steering. So a second loss, which is ours, holds the steered model to the steered
    original on the behavior's own prompts (`KTSConfig.keep_weight`), and `history` always has `effect_kept`. Vectors
    must be fitted to the edited model again: those from before are refused there.

    Example:
        >>> edit = kl_then_steer(model, prompts, texts, {"refuse": pairs}, layers=[13])
        >>> edited = edit.prepare(model)
        >>> refusal = MeanDifference(13).fit(edited, pairs)
        >>> steerlab.generate(edited, prompts, steer=refusal)

    Args:
        model: from `steerlab.load`, with its weights in this process; it stays as it is.
        benign: prompts that steering should not disturb, and none of those that it should change.
        answers: the model's own answers to them, one each.
        behaviors: examples with contrasts by name of the behavior; one in five is left out of the fit,
            unless `keep` is given.
        layers: where the model is steered: a layer (0-based), a `Site`, or several; `released_layers` has the released.
        keep: contrasts by behavior whose answers the second loss reads, and `effect_kept` one in five of them; by
            default those of `behaviors`. In our study the model's own answers, steered and unsteered, kept the most.
        estimator: makes what fits a behavior's vectors for these sites: `MeanDifference`, `PCA`, ...
        config: a `KTSConfig`.
        validation: share of the benign texts on which nothing is trained and the KL is measured.
        folder: for checkpoints: the same call goes on from the last one, to the same weights.
        seed: of the held-out texts, the batches, the behaviors and the strengths.
        progress: show a bar.

    Returns:
        A `ModelEdit` with the weights of the lowest held-out KL under which steering keeps enough of its effect.

    Raises:
        DataError: not one answer for each prompt, too few texts, or a behavior without contrasts.
        SteeringError: a KL that is not finite, vectors without effect or that are not added, weights that LoRA can't be
            put on, or that have an adapter already.
        LoadError: peft is not installed.
        MismatchError: the folder belongs to another training.

    Warns:
        UserWarning: benign texts of a behavior; a held-out KL that does not fall, where training stops.

    Source: arXiv 2406.15518, section 3.
    """
    check_ready(model)
    config = KTSConfig() if config is None else config
    examples, sites, seed = as_examples(benign), as_sites(layers, model), as_seed(seed)
    answers, share = as_texts("answers", answers), as_number("validation", validation, 0.0, 1.0)
    if len(answers) != len(examples):
        raise DataError(f"{len(examples)} benign prompts, and {len(answers)} answers: give a text for each prompt")
    vectors = BehaviorVectors(behaviors, sites, estimator, keep)
    vectors.warn_about(examples)
    rows = [
        model.encode(e.prompt, answer=text, system=e.system, example_id=e.id, images=e.images)
        for e, text in zip(examples, answers, strict=True)
        if text.strip()
    ]
    order = np.random.default_rng([seed, len(rows)]).permutation(len(rows)).tolist()
    n_held = max(1, round(share * len(rows)))
    if n_held >= len(rows):
        raise DataError(f"{len(rows)} benign texts with an answer, of which {n_held} are held out: give more")
    origin = model.info()
    pairs = {name: data_hash([*vectors.fitted[name], *vectors.held_out[name]]) for name in vectors.names}
    if keep is not None:
        pairs |= {f"{name}, kept": data_hash(vectors.kept[name]) for name in vectors.names}
    identity = {
        **{name: origin[name] for name in ("weights", "dtype", "template")}, "benign": data_hash(examples),
        "answers": fingerprint(answers), "behaviors": pairs,
        "sites": [str(site) for site in sites], "estimator": content_fingerprint(estimator),
        "config": vars(config), "validation": share, "seed": seed,
    }  # fmt: skip
    train, held_out = ([rows[i] for i in some] for some in (order[n_held:], order[:n_held]))
    trainer = _Trainer(model, vectors, config, train, held_out, seed)
    history = trainer.run(Checkpoint(folder, identity), progress)
    lora = describe_adapter(trainer.peft_model)
    return ModelEdit("kts", origin, trainer.best, lora, identity | {"best_step": trainer.best_step}, history)


class _Trainer:
    """The trained copy, its optimizer, and what it has measured so far."""

    def __init__(
        self, model: Model, vectors: BehaviorVectors, config: KTSConfig, train: list[EncodedPrompt],
        held_out: list[EncodedPrompt], seed: int,
    ) -> None:  # fmt: skip
        self.vectors, self.config, self.train, self.held_out, self.seed = vectors, config, train, held_out, seed
        first = 0 if config.blocks == "all" else 1 + min(site.layer for site in vectors.sites)
        self.peft_model, self.model = adapt(model, config.rank, config.scaling, seed, first=first)
        self.forwards = PairedForwards(self.model, self.peft_model)
        trained = [p for p in self.peft_model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
        self.records: list[dict[str, float]] = []
        self.best, self.best_step = adapter_weights(self.peft_model), 0
        self._own = {
            name: [encode_answer(self.model, e, side) for e in vectors.kept[name] for side in SIDES]
            for name in vectors.names
        }
        self._answered = {
            (name, side): [encode_answer(self.model, e, side) for e in vectors.held_out[name]]
            for name in vectors.names
            for side in SIDES
        }
        # before any step
        self._of_original = {name: vectors.vectors(self.model, name) for name in vectors.names}
        self._effects = {name: self._effect(name, original=True) for name in vectors.names}
        for name, effect in self._effects.items():
            if effect * config.strength <= 0:
                raise SteeringError(
                    f"steering by {config.strength:g} does not move held-out answers of {name!r} to the wanted side "
                    f"({effect:.3g} nats per token): there is no effect to keep. Give other layers or coefficients"
                )

    def run(self, checkpoint: Checkpoint, progress: bool) -> pd.DataFrame:
        """All steps from the last checkpoint on; ends with the best weights, and returns the history."""
        start, losses = checkpoint.restore(self), list[float]()
        with progress_bar(self.config.steps, "KL-then-steer", "step", progress) as bar:
            bar.update(start)
            for step in range(start, self.config.steps):
                if step % self.config.refit_every == 0 or step % self.config.measure_every == 0:
                    self.vectors.clear()
                if step % self.config.measure_every == 0:
                    if len(self.records) * self.config.measure_every <= step:
                        self.measure(step, losses)
                        checkpoint.write(self, step)
                    else:  # as `measure` does: vectors belong to the weights of this step, whenever they are asked for
                        for name in self.vectors.names:
                            self.vectors.vectors(self.model, name)
                    if self._rises():
                        break
                losses.append(self.step(step))
                bar.update(1)
            else:
                self.vectors.clear()
                self.measure(self.config.steps, losses)
        restore_weights(self.peft_model, self.best)
        return pd.DataFrame(self.records)[COLUMNS]

    def step(self, number: int) -> float:
        """One update; what it draws depends on seed and number alone."""
        rng, config = np.random.default_rng([self.seed, number, 1]), self.config
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(number)
        losses = []
        low, high = config.coefficients
        for _ in range(config.accumulate):
            name = self.vectors.names[rng.integers(len(self.vectors.names))]
            strength = float(rng.uniform(low, high)) if rng.random() < config.steered_share else 0.0
            vectors = self.vectors.vectors(self.model, name)
            loss = self._mean_divergence(self.train, config.batch_size, rng, vectors, strength)
            losses.append(float(loss.detach()))
            if strength and config.keep_weight:
                own, original = self._own[name], self._of_original[name]
                kept = self._mean_divergence(own, (config.batch_size + 1) // 2, rng, vectors, strength, original)
                loss = loss + config.keep_weight * kept
            (loss / config.accumulate).backward()
        self.optimizer.step()
        return float(np.mean(losses))

    def _mean_divergence(
        self, rows: list[EncodedPrompt], size: int, rng: np.random.Generator, vectors: Mapping[Site, Tensor],
        strength: float, of_original: Mapping[Site, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """The mean KL over the tokens of some rows, drawn anew, to the unsteered or the steered original."""
        config, device = self.config, self.model.device
        drawn = rng.choice(len(rows), min(size, len(rows)), replace=False)
        parts = [
            self.forwards.divergence(
                batch, edits_for(batch, vectors, strength, device), config.tokens, config.first,
                self.forwards.reference(batch, config.tokens, edits_for(batch, of_original or {}, strength, device)),
            )
            for batch in batches_of(self.model, [rows[i] for i in drawn], config.batch_size)
        ]  # fmt: skip
        return torch.cat(parts).mean()

    @torch.no_grad()
    def measure(self, step: int, losses: list[float]) -> None:
        """The held-out KL with and without steering at the largest strength, and how much of its effect is left."""
        config, device = self.config, self.model.device
        kls: dict[str, list[Tensor]] = {"kl_steered": [], "kl_unsteered": []}
        for batch in batches_of(self.model, self.held_out, config.batch_size):
            reference = self.forwards.reference(batch, config.tokens)
            kls["kl_unsteered"].append(self.forwards.divergence(batch, {}, config.tokens, config.first, reference))
            for name in self.vectors.names:
                edits = edits_for(batch, self.vectors.vectors(self.model, name), config.strength, device)
                kls["kl_steered"].append(self.forwards.divergence(batch, edits, config.tokens, config.first, reference))
        kept = [self._effect(name) / self._effects[name] for name in self.vectors.names]
        record = {name: float(torch.cat(values).mean()) for name, values in kls.items()}
        recent = losses[-config.measure_every :]
        self.records.append(
            {"step": step, "loss": float(np.mean(recent)) if recent else math.nan, **record,
             "effect_kept": float(min(kept)), "learning_rate": config.learning_rate_at(step)}
        )  # fmt: skip
        if self._best_record() is self.records[-1]:
            self.best, self.best_step = adapter_weights(self.peft_model), step

    def _best_record(self) -> dict[str, float]:
        """The measurement with the lowest held-out KL of those in which steering keeps enough of its effect."""
        least = self.config.least_effect
        allowed = [one for one in self.records if least is None or one["effect_kept"] >= least]
        return min(allowed or self.records[:1], key=_held_out_kl)

    @torch.no_grad()
    def _effect(self, name: str, original: bool = False) -> float:
        """What steering adds to the log-probability per token of wanted over unwanted answers, held-out pairs' mean."""
        vectors = self.vectors.vectors(self.model, name)
        margins = []
        for strength in (self.config.strength, 0.0):
            found = {}
            for side in SIDES:
                found[side] = np.mean([
                    logprob
                    for batch in batches_of(self.model, self._answered[name, side], self.config.batch_size)
                    for logprob in self.forwards.answer_logprobs(
                        batch, edits_for(batch, vectors, strength, self.model.device), original=original
                    )
                ])  # fmt: skip
            margins.append(found["positive"] - found["negative"])
        return float(margins[0] - margins[1])

    def _rises(self) -> bool:
        """Whether no better weights were found in as many measurements as patience allows."""
        best, patience = self._best_record(), self.config.patience
        if patience is None or self.records.index(best) > len(self.records) - 1 - patience:
            return False
        least = self.config.least_effect
        where = "" if least is None else f" with steering that keeps {least:g} of its effect"
        warnings.warn(
            f"the held-out KL has not fallen below {_held_out_kl(best):.3g} nats for {patience} measurements{where}: "
            f"training stopped at step {int(self.records[-1]['step'])}, and the weights of step {self.best_step} are "
            "kept",
            stacklevel=4,
        )
        return True


def _held_out_kl(record: Mapping[str, Any]) -> float:
    return float(record["kl_steered"] + record["kl_unsteered"])
