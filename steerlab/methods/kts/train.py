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

from steerlab._support.checks import as_seed
from steerlab._support.files import fingerprint
from steerlab._support.progress import bar as progress_bar
from steerlab.capturing.rows import Layers, as_sites
from steerlab.data.example import Example, data_hash
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError
from steerlab.methods.kts.checkpoint import Checkpoint
from steerlab.methods.kts.config import KTSConfig
from steerlab.methods.kts.directions import Concepts, Fit, edits_for
from steerlab.methods.kts.objective import Passes, batches_of
from steerlab.methods.mean import MeanDifference
from steerlab.methods.model_edit import ModelEdit, adapt, adapter_weights, describe_adapter, restore_weights
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.model import Model, check_ready
from steerlab.models.sites import Site

SIDES = ("positive", "negative")
COLUMNS = ["step", "loss", "kl_steered", "kl_unsteered", "effect_kept", "learning_rate"]


def kl_then_steer(
    model: Model,
    benign: Data,
    answers: Sequence[str],
    concepts: Mapping[str, Data],
    *,
    layers: Layers,
    fit: Fit = MeanDifference,
    config: KTSConfig | None = None,
    validation: float = 0.2,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ModelEdit:
    """Train a model so that steering it changes its answers to benign texts less.

    Each step steers the model with a concept's vectors and a random strength, and lowers the KL between its next-token
    distributions and those of the unsteered original. Only a LoRA adapter is trained, on a copy. KL alone would be
    smallest if the model undid the steering, so `history` always has `effect_kept`, and vectors must be fitted to the
    edited model again: those from before are refused there.

    Example:
        >>> edit = kl_then_steer(model, prompts, texts, {"refuse": pairs}, layers=[13])
        >>> edited = edit.prepare(model)
        >>> refusal = MeanDifference(13).fit(edited, pairs)
        >>> steerlab.generate(edited, prompts, steer=refusal)

    Args:
        model: from `steerlab.load`, with its weights in this process; it stays as it is.
        benign: prompts that steering should not disturb; without the concepts to be steered.
        answers: the model's own answers to them, one each.
        concepts: examples with contrasts by name of the concept; one in five is left out of the fit.
        layers: where the model is steered: a layer (0-based), a `Site`, or several; `released_layers` has the released.
        fit: makes the estimator of a concept's vectors for these sites.
        config: a `KTSConfig`.
        validation: share of the benign texts on which nothing is trained and the KL is measured.
        folder: for checkpoints: the same call goes on from the last one, to the same weights.
        seed: of the held-out texts, the batches, the concepts and the strengths.
        progress: show a bar.

    Returns:
        A `ModelEdit` with the weights of the lowest held-out KL under which steering keeps enough of its effect.

    Raises:
        DataError: not one answer for each prompt, too few texts, or a concept without contrasts.
        SteeringError: a KL that is not finite, or weights that LoRA can't be put on.
        LoadError: peft is not installed.
        MismatchError: the folder belongs to another training.

    Warns:
        UserWarning: benign texts of a concept; a held-out KL that does not fall, where training stops.

    Source: arXiv 2406.15518, section 3.
    """
    check_ready(model)
    config = KTSConfig() if config is None else config
    examples, sites, seed = as_examples(benign), as_sites(layers, model), as_seed(seed)
    if isinstance(answers, str) or len(answers) != len(examples):
        raise DataError(f"{len(examples)} benign prompts, and {len(answers)} answers: give a text for each prompt")
    family = Concepts(concepts, sites, fit)
    family.warn_about(examples)
    rows = [
        model.encode(e.prompt, answer=text, system=e.system, example_id=e.id)
        for e, text in zip(examples, answers, strict=True)
        if text.strip()
    ]
    order = np.random.default_rng([seed, len(rows)]).permutation(len(rows)).tolist()
    n_held = max(1, round(validation * len(rows)))
    if n_held >= len(rows):
        raise DataError(f"{len(rows)} benign texts with an answer, of which {n_held} are held out: give more")
    identity = {
        "weights": model.info()["weights"], "benign": data_hash(examples), "answers": fingerprint(list(answers)),
        "concepts": {name: data_hash(as_examples(data)) for name, data in concepts.items()},
        "sites": [str(site) for site in sites], "config": vars(config), "validation": validation, "seed": seed,
    }  # fmt: skip
    trainer = _Trainer(
        model, family, config, [rows[i] for i in order[n_held:]], [rows[i] for i in order[:n_held]], seed
    )
    history = trainer.run(Checkpoint(folder, identity), progress)
    lora = describe_adapter(trainer.tuned)
    return ModelEdit("kts", model.info(), trainer.best, lora, identity | {"best_step": trainer.best_step}, history)


class _Trainer:
    """The trained copy, its optimizer, and what it has measured so far."""

    def __init__(
        self, model: Model, family: Concepts, config: KTSConfig, train: list[EncodedPrompt],
        held_out: list[EncodedPrompt], seed: int,
    ) -> None:  # fmt: skip
        self.family, self.config, self.train, self.held_out, self.seed = family, config, train, held_out, seed
        first = 0 if config.blocks == "all" else 1 + min(site.layer for site in family.sites)
        self.tuned, self.model = adapt(model, config.rank, config.scaling, seed, first=first)
        self.passes = Passes(self.model, self.tuned)
        self.parameters = [p for p in self.tuned.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=0.0)
        self.records: list[dict[str, float]] = []
        self.best = adapter_weights(self.tuned)
        self.best_step = 0
        # before any step
        self._effects = {name: self._effect(name, original=True) for name in family.names}
        self._of_original = {name: family.vectors(self.model, name) for name in family.names}
        self._of_concept = {name: self._answered(family.fitted[name]) for name in family.names}

    def _answered(self, examples: Sequence[Example], *sides: str) -> list[EncodedPrompt]:
        """The prompts of contrasts with their answers of these sides; without any, of both."""
        return [
            self.model.encode(e.prompt, answer=getattr(e.contrast, side), system=e.system, example_id=e.id)
            for e in examples
            for side in sides or SIDES
        ]

    def run(self, checkpoint: Checkpoint, progress: bool) -> pd.DataFrame:
        """All steps from the last checkpoint on; ends with the best weights, and returns the history."""
        start, losses = checkpoint.restore(self), list[float]()
        with progress_bar(self.config.steps, "KL-then-steer", "step", progress) as bar:
            bar.update(start)
            for step in range(start, self.config.steps):
                if step % self.config.refresh == 0:
                    self.family.forget()
                    if len(self.records) * self.config.refresh <= step:
                        self.measure(step, losses)
                        checkpoint.write(self, step)
                    if self._rises():
                        break
                losses.append(self.step(step))
                bar.update(1)
            else:
                self.family.forget()
                self.measure(self.config.steps, losses)
        restore_weights(self.tuned, self.best)
        return pd.DataFrame(self.records)[COLUMNS]

    def step(self, number: int) -> float:
        """One update; what it draws depends on seed and number alone."""
        rng, config = np.random.default_rng([self.seed, number, 1]), self.config
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(number)
        losses = []
        for _ in range(config.accumulate):
            name = self.family.names[rng.integers(len(self.family.names))]
            strength = float(rng.uniform(*config.coefficients)) if rng.random() < config.steered else 0.0
            vectors = self.family.vectors(self.model, name)
            loss = self._mean_divergence(self.train, config.batch_size, rng, vectors, strength)
            losses.append(float(loss.detach()))
            if strength and config.keep:
                size = (config.batch_size + 1) // 2
                kept = self._mean_divergence(
                    self._of_concept[name], size, rng, vectors, strength, self._of_original[name]
                )
                loss = loss + config.keep * kept
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
            self.passes.divergence(
                batch, edits_for(batch, vectors, strength, device), config.tokens, config.kl,
                edits_for(batch, of_original or {}, strength, device),
            )
            for batch in batches_of(self.model, [rows[i] for i in drawn], config.batch_size)
        ]  # fmt: skip
        return torch.cat(parts).mean()

    @torch.no_grad()
    def measure(self, step: int, losses: list[float]) -> None:
        """The held-out KL with and without steering at the largest strength, and how much of its effect is left."""
        config, strength = self.config, self._strength
        batches = batches_of(self.model, self.held_out, config.batch_size)
        kls: dict[str, list[Tensor]] = {"kl_steered": [], "kl_unsteered": []}
        for batch in batches:
            kls["kl_unsteered"].append(self.passes.divergence(batch, {}, config.tokens, config.kl))
            for name in self.family.names:
                edits = edits_for(batch, self.family.vectors(self.model, name), strength, self.model.device)
                kls["kl_steered"].append(self.passes.divergence(batch, edits, config.tokens, config.kl))
        kept = [self._effect(name) / self._effects[name] for name in self.family.names]
        record = {name: float(torch.cat(values).mean()) for name, values in kls.items()}
        recent = losses[-config.refresh :]
        self.records.append(
            {"step": step, "loss": float(np.mean(recent)) if recent else math.nan, **record,
             "effect_kept": float(np.mean(kept)), "learning_rate": config.learning_rate_at(step)}
        )  # fmt: skip
        if self._best_record() is self.records[-1]:
            self.best, self.best_step = adapter_weights(self.tuned), step

    def _best_record(self) -> dict[str, float]:
        """The measurement with the lowest held-out KL of those in which steering keeps enough of its effect."""
        least = self.config.least_effect
        allowed = [one for one in self.records if least is None or one["effect_kept"] >= least]
        return min(allowed or self.records[:1], key=_held_out_kl)

    @property
    def _strength(self) -> float:
        return max(self.config.coefficients, key=abs)

    @torch.no_grad()
    def _effect(self, name: str, original: bool = False) -> float:
        """What steering adds to the log-probability of wanted over unwanted answers of held-out contrasts."""
        vectors = self.family.vectors(self.model, name)
        margins = []
        for strength in (self._strength, 0.0):
            found = {}
            for side in SIDES:
                rows = self._answered(self.family.held_out[name], side)
                found[side] = np.mean([
                    self.passes.answer_logprob(
                        batch, edits_for(batch, vectors, strength, self.model.device), original=original
                    )
                    for batch in batches_of(self.model, rows, self.config.batch_size)
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
            f"training stopped at step {int(self.records[-1]['step'])}, and the weights of step "
            f"{self.best_step} are kept",
            stacklevel=4,
        )
        return True


def _held_out_kl(record: Mapping[str, Any]) -> float:
    return float(record["kl_steered"] + record["kl_unsteered"])
