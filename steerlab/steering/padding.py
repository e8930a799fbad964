"""Padding in generation: the options that would count it as text, and where each row ends, as padding comes after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import StoppingCriteria, StoppingCriteriaList, StopStringCriteria

from steerlab.models.model import Model


class _Ends(StoppingCriteria):
    """Stopping criteria that record the length at which each row ends: later padding can't be told from tokens."""

    def __init__(self, criteria: Sequence[Callable[..., Any]], ends: dict[int, int]) -> None:
        self.criteria, self.ends = StoppingCriteriaList(criteria), ends

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        done = self.criteria(input_ids, scores, **options)
        for row in done.nonzero().flatten().tolist():
            self.ends.setdefault(row, input_ids.shape[1])
        return done


def with_recorded_ends(model: Model, options: dict[str, Any], ends: dict[int, int]) -> dict[str, Any]:
    """The options, with `_Ends` for stop strings and stopping criteria; beams keep theirs, since they change rows."""
    criteria = list(options.get("stopping_criteria") or ())
    strings = option_in_use(model, options, "stop_strings")
    if not (criteria or strings) or (option_in_use(model, options, "num_beams") or 1) > 1:
        return options
    if strings:
        criteria.append(StopStringCriteria(options.get("tokenizer", model.tokenizer), strings))
    rest = {name: value for name, value in options.items() if name != "tokenizer"}
    return rest | {"stop_strings": None, "stopping_criteria": StoppingCriteriaList([_Ends(criteria, ends)])}


def reads_padding(model: Model, options: Mapping[str, Any]) -> bool:
    """Whether padding would change texts: penalties of the tokens so far, a least length and given code count it."""
    least = ("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size")
    used = [option_in_use(model, options, name) for name in ("repetition_penalty", "encoder_repetition_penalty")]
    code = [*(options.get("logits_processor") or ()), *(options.get("stopping_criteria") or ())]
    if options.get("prefix_allowed_tokens_fn") or not all(getattr(one, "ignores_padding", False) for one in code):
        return True
    return any(one not in (None, 1.0) for one in used) or any(option_in_use(model, options, name) for name in least)


def option_in_use(model: Model, options: Mapping[str, Any], name: str) -> Any:
    """What Hugging Face's `generate` uses: the option, else that of a given configuration, else the model's."""
    if name in options:
        return options[name]
    own = getattr(options.get("generation_config"), name, None)
    return getattr(model.hf.generation_config, name, None) if own is None else own
