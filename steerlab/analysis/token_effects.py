"""What a vector does to each token of generated texts: cosine, norm ratio, KL divergence, the most likely words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count, groupby, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_whole
from steerlab.analysis._dose import continued
from steerlab.data.example import Example
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, SteeringError
from steerlab.methods.base import Steerer
from steerlab.methods.vector import Vectors
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.engine import Inputs, identity
from steerlab.models.interventions import SiteEdits, apply_edits
from steerlab.models.kv_prefix import MIN_PREFIX, ForwardState, Prefix, split_at
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.sites import Site
from steerlab.steering.batches import apply_prompt_transforms, as_requests, encode_examples
from steerlab.steering.generate import check_lengths
from steerlab.steering.interventions import BatchedSetting, build_edits, first_written_column, restart_layer
from steerlab.steering.requests import Alpha, Request, Scale, resolve_interventions

Tokens = list[dict[str, Any]]
Ids = Sequence[Sequence[Sequence[int]]]  # for each setting, the tokens of a text for each prompt
LOGITS = 2**25  # numbers of a forward's logits, of which four tensors are held at once


def token_effects(
    model: Model, data: Data, ids: Sequence[Sequence[int]], *, steer: Steerer | Vectors | Request, alpha: Alpha = 1.0,
    positions: Positions | None = None, scale: Scale = "raw", top: int = 3,
) -> list[Tokens]:  # fmt: skip
    """What a steerer does at each token of given texts, against the unsteered model on the same texts.

    Example:
        >>> texts = steerlab.generate(model, prompts, steer=vector)
        >>> token_effects(model, prompts, texts.ids, steer=vector)[0][5]["kl"]     # nats

    Args:
        model: from `steerlab.load`, in this process.
        data: the prompts.
        ids: the tokens of a text for each, as in `Generations.ids`.
        steer, alpha, positions, scale: as in `generate`.
        top: how many of the most likely words are listed.

    Returns:
        For each prompt a list of records, one per token, all of them about the state that predicts the token: `token`;
        `cosine` of the unsteered state and the vector, at the first site that is steered; `norm_ratio`, ‖h' - h‖/‖h‖
        there; `kl` of the steered from the unsteered distribution, in nats; `logprob` of the token without steering;
        `top` and `unsteered`, the most likely words of both with their probabilities. `cosine` and `norm_ratio` are
        None where no vector belongs to a token: at images, and for a vector of length zero.

    Raises:
        DataError: not one text per prompt. Otherwise as `generate`.
    """
    requests = as_requests(model, [steer], alpha, positions, scale)
    given = as_examples(data)
    if len(ids) != len(given):
        raise DataError(f"{len(given)} prompts but {len(ids)} texts: give the tokens of one text for each")
    examples = apply_prompt_transforms(given, requests)
    settings = resolve_interventions(model, requests, examples, 16, encode_examples(model, examples))
    return setting_effects(model, examples, settings or [BatchedSetting("none", (), 0.0, "last")], [ids], top=top)[0]


def setting_effects(
    model: Model, examples: Sequence[Example], settings: Sequence[BatchedSetting], ids: Ids, *, top: int = 3,
    on_batch: Callable[[int], object] = lambda n: None,
) -> list[list[Tokens]]:  # fmt: skip
    """The same for many settings; prompts and the blocks below a steered one are computed once for all of them.

    Args:
        model: as above.
        examples: the prompts.
        settings: interventions with strength and positions, such as `SweepPlan.settings`.
        ids: for each setting, the tokens of a text for each prompt.
        top: as above.
        on_batch: called with the number of texts of each finished forward.

    Returns:
        For each setting and prompt the records of its text.
    """
    as_whole("top", top)
    if model.is_remote:
        raise SteeringError(
            f"{model.id} runs on a server, and these numbers need the states of every token: load it here"
        )
    found: list[list[Tokens]] = [[[] for _ in examples] for _ in settings]
    longest = max((len(text) for texts in ids for text in texts), default=0)
    if not longest:
        return found
    vocabulary = int(model.hf.config.get_text_config().vocab_size)
    size = max(1, LOGITS // (longest * vocabulary))
    rows = encode_examples(model, examples)
    runs = groupby(sorted(range(len(settings)), key=lambda i: _order(settings[i])), key=lambda i: _order(settings[i]))
    groups = [list(group) for _, group in runs]
    most = [max(len(texts[n]) for texts in ids) for n in range(len(rows))]
    model.try_length(max(map(len, rows)) + longest)  # shorter texts may be filled up
    batches, may_fill = model.batches(rows, size, "aligned"), model.row_format.may_pad("right")
    for numbers in [part for batch in batches for part in _that_fit(model, rows, list(batch), most)]:
        longest = max(1, max(most[n] for n in numbers))
        check_lengths(model, [rows[n] for n in numbers], longest)
        shared = _Prompts(model, rows, numbers)
        for group in groups:
            lengths = [0 if may_fill else len(ids[i][numbers[0]]) for i in group]
            for chunk in _chunks(group, lengths, max(1, size // len(numbers))):
                texts = [[ids[i][n] for n in numbers] for i in chunk]
                records = shared.run([settings[i] for i in chunk], texts, top)
                for i, per_setting in zip(chunk, records, strict=True):
                    for n, tokens in zip(numbers, per_setting, strict=True):
                        found[i][n] = tokens
                on_batch(len(chunk) * len(numbers))
    return found


def _that_fit(model: Model, rows: Sequence[EncodedPrompt], numbers: list[int], most: Sequence[int]) -> list[list[int]]:
    """A batch, or its rows one by one where the longest prompt with the longest text would leave the context, or where
    what follows a row changes it.
    """
    longest = max(len(rows[n]) for n in numbers) + max(most[n] for n in numbers)
    fits = longest <= (model.context_length or longest) and model.row_format.may_pad("right")
    return [numbers] if fits else [[n] for n in numbers]


def _chunks(settings: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """At most `size` settings each, whose texts have one length."""
    groups: dict[int, list[int]] = {}
    for setting, length in zip(settings, lengths, strict=True):
        groups.setdefault(length, []).append(setting)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


class _Prompts:
    """Some prompts, whose keys and values are computed once for each column from which settings write."""

    def __init__(self, model: Model, rows: Sequence[EncodedPrompt], numbers: Sequence[int]) -> None:
        self.model, self.numbers = model, list(numbers)
        self.rows = [rows[i] for i in numbers]
        self.prefixes: dict[int, Prefix] = {}

    def run(self, settings: Sequence[BatchedSetting], texts: Ids, top: int) -> list[list[Tokens]]:
        """The records of some settings with one steered site, in one pass over their texts."""
        model, copies = self.model, len(settings)
        longest = max(1, *(len(text) for copy in texts for text in copy))
        # shorter texts are filled up: what follows a token changes nothing before it
        fill = int(model.tokenizer.pad_token_id)
        filled = [
            [continued(row, [*t, *[fill] * (longest - len(t))]) for row, t in zip(self.rows, copy, strict=True)]
            for copy in texts
        ]
        first = model.batch(filled[0], "aligned")
        whole = model.inputs(model.batch([row for copy in filled for row in copy], "aligned"))
        steering = any(one.interventions and bool(torch.as_tensor(one.alpha).any()) for one in settings)
        edits = build_edits(model, settings, first, self.numbers, range(copies)) if steering else {}
        cut = first_written_column(model, first, settings, self.numbers) if steering else first.last_prompt_columns[0]
        cut = cut if cut >= MIN_PREFIX and model.supports_prefix_cache else 0
        rest = split_at(whole, cut)[1] if cut else whole
        columns = torch.arange(longest) + first.last_prompt_columns[0] - cut
        with model.lock, torch.no_grad():
            state, at_site, site = self._states(settings, rest, self._prefix(first, cut), copies)
            keep = columns.to(model.device)
            before, after = (model.engine.logits(rest, one, keep, state).float() for one in ({}, edits))
        cosine, ratios = self._shifts(settings, edits, site, at_site, columns, cut)
        return _records(model, texts, before, after, cosine, ratios, top)

    def _prefix(self, batch: Batch, cut: int) -> Prefix | None:
        if cut and cut not in self.prefixes:
            self.prefixes[cut] = self.model.prefill(split_at(self.model.inputs(batch), cut)[0])
        return self.prefixes.get(cut)

    def _states(
        self, settings: Sequence[BatchedSetting], rest: Inputs, prefix: Prefix | None, copies: int
    ) -> tuple[ForwardState, Tensor | None, Site | None]:
        """Where the forwards start, and the unsteered states at the first steered site."""
        model, start = self.model, ForwardState(prefix, copies)
        level = restart_layer(settings) if model.supports_layer_restart else None

        def capture(site: Site, start: ForwardState) -> Tensor:
            return model.engine.capture_states(rest, {}, [site], identity, start)[:, 0]

        if level is not None:
            start = ForwardState(prefix, copies, level, capture(Site(level), start))
        sites = [model.site(one.site) for one in settings[0].interventions if one.site.part == "text"]
        if not sites:
            return start, None, None
        first = min(sites, key=lambda site: site.forward_order)
        return start, start.state if level is not None and first == Site(level) else capture(first, start), first

    def _shifts(
        self, settings: Sequence[BatchedSetting], edits: SiteEdits, site: Site | None, states: Tensor | None,
        columns: Tensor, cut: int,
    ) -> tuple[Float[Tensor, "row token"], Float[Tensor, "row token"]]:  # fmt: skip
        """The cosine of state and vector and ‖h' - h‖/‖h‖ at every token; nan where there is none."""
        if states is None or site is None or site not in edits:
            nothing = torch.full((len(settings) * len(self.rows), len(columns)), torch.nan)
            return nothing, nothing
        changed = apply_edits(edits[site], states, cut + states.shape[1])
        h, delta = (t[:, columns.to(t.device)].float() for t in (states, changed - states))
        vectors = torch.stack([self._vector(setting, site, states.shape[-1]) for setting in settings]).flatten(0, 1)
        vectors = vectors.to(h.device)[:, None]
        directions = torch.where(vectors.isnan(), delta, vectors)
        cosine = torch.cosine_similarity(h, directions.expand_as(h), dim=-1)
        cosine = cosine.masked_fill(directions.norm(dim=-1).expand_as(cosine) == 0, torch.nan)
        return cosine.cpu(), (delta.norm(dim=-1) / h.norm(dim=-1)).cpu()

    def _vector(self, setting: BatchedSetting, site: Site, width: int) -> Float[Tensor, "row hidden"]:
        """The vectors of a setting at a site; nan where an operator has none of its own."""
        given = [one.vectors for one in setting.interventions if self.model.site(one.site) == site]
        if not given or given[0] is None:
            return torch.full((len(self.rows), width), torch.nan)
        return given[0][self.numbers].float().cpu()


def _order(setting: BatchedSetting) -> tuple[str, str]:
    """Settings with the same sites and positions share their forwards."""
    return " ".join(str(one.site) for one in setting.interventions), str(setting.positions)


def _records(
    model: Model, texts: Ids, before: Tensor, after: Tensor, cosine: Tensor, ratios: Tensor, top: int
) -> list[list[Tokens]]:
    """The records of every text, copy by copy."""
    totals = [logits.logsumexp(-1, keepdim=True) for logits in (after, before)]
    best = [(logits.topk(top, -1), total) for logits, total in zip((after, before), totals, strict=True)]
    shares = [((one.values - total).exp().tolist(), one.indices.tolist()) for one, total in best]
    logprobs = before - totals[1]
    difference = (after.sub_(totals[0]) - logprobs).nan_to_num_(0.0)  # 0 log 0 is 0
    kl = torch.einsum("rtv,rtv->rt", after.exp_(), difference).clamp_min(0).tolist()

    @cache
    def word(token: int) -> str:
        return str(model.tokenizer.decode([token]))

    def likely(which: int, row: int, token: int) -> list[tuple[str, float]]:
        values, places = shares[which]
        return [(word(i), share) for share, i in zip(values[row][token], places[row][token], strict=True)]

    def record(row: int, i: int, piece: str, token: int) -> dict[str, Any]:
        return {
            "token": piece, "cosine": _number(cosine[row, i]), "norm_ratio": _number(ratios[row, i]), "kl": kl[row][i],
            "logprob": float(logprobs[row, i, token]), "top": likely(0, row, i), "unsteered": likely(1, row, i),
        }  # fmt: skip

    rows = count()
    return [
        [
            [record(row, i, *one) for i, one in enumerate(zip(_pieces(model, text), text, strict=True))]
            for text, row in zip(copy, rows, strict=False)
        ]
        for copy in texts
    ]


def _pieces(model: Model, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, so that spaces are kept whatever the tokenizer; a token that ends inside a
    character, or completes one, is decoded by itself.
    """
    texts = ["", *(str(model.tokenizer.decode(list(ids[: i + 1]))) for i in range(len(ids)))]
    return [
        after[len(before) :] if after.startswith(before) else str(model.tokenizer.decode([token]))
        for (before, after), token in zip(pairwise(texts), ids, strict=True)
    ]


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)
