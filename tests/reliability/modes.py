"""Modes that a model can be put into: in each, every verb gives the numbers of plain hooks on single rows, or refuses.

The oracle is plain Hugging Face: one row at a time, no padding, no cache, the vector added by a forward hook.
"""

import contextlib
import copy
import json
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import steerlab
from steerlab import Contrast, Example, MeanDifference, SteeringVector
from steerlab.errors import SteerlabError
from steerlab.models.model import Model
from steerlab.testing import tiny_tokenizer
from steerlab.testing.text import tiny_hf as any_tiny_hf

PROMPTS = ["Hi", "How do I bake a loaf of bread?", "Name two rivers, please."]
ANSWERS = ["Sure, here.", "No.", "I cannot say."]
LAYER, ALPHA, NEW = 1, 2.0, 6
VECTOR = torch.linspace(-1, 1, 32)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}

Block = Callable[[Tensor], Tensor]
tiny_hf = partial(any_tiny_hf, n_layers=3)


@contextlib.contextmanager
def hooked(hf: Any, layer: int, change: Block) -> Iterator[None]:
    """A plain forward hook on one block, found by the name that Llama gives it."""
    name = f"model.layers.{layer}"
    block = next(module for path, module in hf.named_modules() if path.endswith(name))

    def hook(_: Any, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    with block.register_forward_hook(hook):
        yield


class Oracle:
    """Plain Hugging Face on single rows."""

    def __init__(self, hf: Any, model: Model) -> None:
        self.hf, self.model = hf, model

    def rows(self, answers: list[str] | None = None) -> list[Any]:
        return [self.model.encode(p, answer=a) for p, a in zip(PROMPTS, answers or [None] * 3, strict=True)]

    @torch.no_grad()
    def forward(self, ids: list[int], steered: bool, read: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits `(token, vocabulary)`, and the states of the block `read`."""
        seen: list[Tensor] = []

        def look(h: Tensor) -> Tensor:
            seen.append(h[0].float().clone())
            return h

        def add(h: Tensor) -> Tensor:
            return h + (ALPHA * VECTOR.to(h.device)).to(h.dtype) if steered else h

        with hooked(self.hf, LAYER, add), hooked(self.hf, LAYER if read is None else read, look):
            given = torch.tensor([ids], device=next(self.hf.parameters()).device)
            return self.hf(input_ids=given, use_cache=False).logits[0].float(), seen

    def states(self) -> Tensor:
        return torch.stack([self.forward(list(row.ids), False, 2)[1][0][-1] for row in self.rows()]).cpu()

    def next_token(self) -> Tensor:
        return torch.stack([self.forward(list(row.ids), True)[0][-1] for row in self.rows()]).cpu()

    def logprobs(self) -> Tensor:
        found = []
        for row in self.rows(ANSWERS):
            logprobs = self.forward(list(row.ids), True)[0].log_softmax(-1)
            found.append(sum(logprobs[i - 1, row.ids[i]] for i in range(row.n_prompt, len(row))))
        return torch.stack(found).cpu()

    def greedy(self, ids: tuple[tuple[int, ...], ...], slack: float) -> bool:
        """Whether each new token is the likeliest after those before it, up to ties within `slack`."""
        for row, new in zip(self.rows(), ids, strict=True):
            logits, _ = self.forward([*row.ids, *new], True)
            for i, token in enumerate(new):
                step = logits[row.n_prompt - 1 + i]
                if step.isnan().any() or step.max() - step[token] > slack:
                    return False
        return True


def vector() -> MeanDifference:
    return SteeringVector({LAYER: VECTOR})


def pairs() -> list[Example]:
    return [Example(p, id=str(i), contrast=Contrast("Sure.", "No.")) for i, p in enumerate(PROMPTS)]


# each verb: whether its numbers are the oracle's
def captured(model: Model, oracle: Oracle, slack: float) -> bool:
    acts = steerlab.capture(model, PROMPTS, layers=[2], progress=False, batch_size=2)
    return torch.allclose(acts.at(2), oracle.states(), atol=slack, rtol=slack)


def generated(model: Model, oracle: Oracle, slack: float) -> bool:
    return oracle.greedy(steerlab.generate(model, PROMPTS, steer=vector(), alpha=ALPHA, max_new_tokens=NEW).ids, slack)


def scored(model: Model, oracle: Oracle, slack: float) -> bool:
    found = steerlab.score(model, PROMPTS, ANSWERS, steer=vector(), alpha=ALPHA)
    return torch.allclose(
        torch.tensor(found["logprob"].to_numpy()).float(), oracle.logprobs(), atol=5 * slack, rtol=slack
    )


def predicted(model: Model, oracle: Oracle, slack: float) -> bool:
    found = steerlab.next_token_logits(model, PROMPTS, steer=vector(), alpha=ALPHA)
    return torch.allclose(found, oracle.next_token(), atol=slack, rtol=slack)


def swept(model: Model, oracle: Oracle, slack: float) -> bool:
    frame = steerlab.sweep(model, pairs(), vector(), alphas=[0.0, ALPHA], positions="all", progress=False)
    expected = []
    for steered in (False, True):
        for row, yes, no in zip(
            oracle.rows(), *[[oracle.model.encode(p, answer=a) for p in PROMPTS] for a in ("Sure.", "No.")], strict=True
        ):
            logits, _ = oracle.forward(list(row.ids), steered)
            expected.append(logits[-1, yes.ids[row.n_prompt]] - logits[-1, no.ids[row.n_prompt]])
    return torch.allclose(
        torch.tensor(frame["value"].to_numpy()).float(), torch.stack(expected).cpu(), atol=slack, rtol=slack
    )


VERBS = {"capture": captured, "generate": generated, "score": scored, "next_token_logits": predicted, "sweep": swept}


@dataclass(frozen=True)
class Mode:
    """A mode, how a model gets into it, and what must come of it.

    Attributes:
        name: of the mode.
        enter: from a fresh Hugging Face model and a backend to a loaded `Model` in that mode, and the plain model that
            the oracle runs. It may be given an exit stack for contexts that last while the verbs run.
        says: a pattern of the message, where a refusal is as good as the right numbers; "" where it is not.
    """

    name: str
    enter: Callable[[str, contextlib.ExitStack], tuple[Model, Any]]
    says: str = ""

    def run(self, backend: str, verbs: Iterable[str]) -> list[dict[str, str]]:
        """The outcome of every verb: "right", "refused" with its message, or "wrong"."""
        with contextlib.ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model, plain = self.enter(backend, stack)
                oracle = Oracle(plain, model)
            except Exception as error:
                refusal = error
                found = {verb: self._judge(lambda: _refuse(refusal)) for verb in verbs}
            else:
                slack = TOLERANCE[model.dtype]
                found = {verb: self._judge(partial(VERBS[verb], model, oracle, slack)) for verb in verbs}
        return [{"mode": self.name, "verb": verb, "backend": backend, **one} for verb, one in found.items()]

    def _judge(self, is_right: Callable[[], bool]) -> dict[str, str]:
        try:
            outcome, detail = ("right", "") if is_right() else ("wrong", "other numbers")
        except SteerlabError as error:
            clear = self.says and re.search(self.says, str(error), re.DOTALL)
            outcome, detail = "refused" if clear else "wrong", f"{type(error).__name__}: {error}"
        except Exception as error:
            outcome, detail = "wrong", f"foreign {type(error).__name__}: {error}"
        return {"outcome": outcome, "detail": " ".join(detail.split())[:300]}


def _refuse(error: Exception) -> bool:
    raise error


def loaded(hf: Any, backend: str, **options: Any) -> Model:
    return steerlab.load(hf, tokenizer=tiny_tokenizer(), backend=backend, **options)


def changed(change: Callable[[Any], Any], family: str = "llama", **config: Any) -> Callable[..., tuple[Model, Any]]:
    """A mode that changes `model.hf` after `load`; the oracle runs a copy made before."""

    def enter(backend: str, stack: contextlib.ExitStack) -> tuple[Model, Any]:
        hf = tiny_hf(family, **config)
        plain = copy.deepcopy(hf)
        model = loaded(hf, backend)
        change(model)
        return model, plain

    return enter


def together(change: Callable[[Any], Any], **config: Any) -> Callable[..., tuple[Model, Any]]:
    """A mode that changes `model.hf` after `load`; the oracle runs the changed model itself."""

    def enter(backend: str, stack: contextlib.ExitStack) -> tuple[Model, Any]:
        model = loaded(tiny_hf(**config), backend)
        change(model)
        return model, model.hf

    return enter


def before(change: Callable[[Any], Any], **config: Any) -> Callable[..., tuple[Model, Any]]:
    """A mode that the model is in when it is loaded; the oracle runs a copy made before."""

    def enter(backend: str, stack: contextlib.ExitStack) -> tuple[Model, Any]:
        hf = tiny_hf(**config)
        plain = copy.deepcopy(hf)
        return loaded(change(hf), backend), plain

    return enter


def within(context: Callable[[], Any], inside_load: bool = False) -> Callable[..., tuple[Model, Any]]:
    """A mode of PyTorch around the verbs."""

    def enter(backend: str, stack: contextlib.ExitStack) -> tuple[Model, Any]:
        hf = tiny_hf()
        plain = copy.deepcopy(hf)
        if inside_load:
            stack.enter_context(context())
        model = loaded(hf, backend)
        assert model.engine  # built before the mode begins
        if not inside_load:
            stack.enter_context(context())
        return model, plain

    return enter


def lora(backend: str, stack: contextlib.ExitStack) -> tuple[Model, Any]:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    wrapped = get_peft_model(tiny_hf(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return loaded(wrapped, backend), wrapped.eval()


def virtual_tokens(backend: str, stack: contextlib.ExitStack) -> tuple[Model, Any]:
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(tiny_hf(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    return loaded(wrapped, backend), wrapped.eval()


def _overflowing(hf: Any) -> Any:
    """Half precision whose second block overflows."""
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.mul_(1e5)
    return hf.half()


def overflow(backend: str, stack: contextlib.ExitStack) -> tuple[Model, Any]:
    return loaded(_overflowing(tiny_hf()), backend, check=False), tiny_hf()


def threads(backend: str, stack: contextlib.ExitStack) -> tuple[Model, Any]:
    """Another thread steers the same model all the while."""
    plain, model = tiny_hf(), loaded(tiny_hf(), backend)
    ending = threading.Event()

    def work() -> None:
        while not ending.is_set():
            steerlab.generate(model, PROMPTS[:2], steer=SteeringVector({2: 9 * VECTOR}), max_new_tokens=3)

    thread = threading.Thread(target=work)
    thread.start()
    stack.callback(thread.join)
    stack.callback(ending.set)
    return model, plain


def _compile_and_run(model: Model) -> None:
    """A graph without hooks is kept, as a user's own forward makes one."""
    model.hf.compile(backend="eager")
    with torch.no_grad():
        model.hf(input_ids=torch.arange(5)[None])


def _pad_left(model: Model) -> None:
    model.tokenizer.padding_side, model.tokenizer.truncation_side = "left", "left"
    model.tokenizer.padding = True


TRAINING = "training mode.*eval"
MODES = [
    Mode("as loaded", changed(lambda m: None)), Mode("train() after load", changed(lambda m: m.hf.train()), TRAINING),
    Mode("train() before load", before(lambda hf: hf.train())),
    Mode("one block in train()", changed(lambda m: m.hf.model.layers[0].train()), TRAINING),
    Mode("dropout in the configuration", changed(lambda m: None, attention_dropout=0.5)),
    Mode("dropout, and train() after load", changed(lambda m: m.hf.train(), attention_dropout=0.5), TRAINING),
    Mode("gradient checkpointing", changed(lambda m: m.hf.gradient_checkpointing_enable())),
    Mode("gradient checkpointing before load", before(lambda hf: (hf.gradient_checkpointing_enable(), hf)[1])),
    Mode("gradient checkpointing and train()",
         changed(lambda m: m.hf.train().gradient_checkpointing_enable()), TRAINING),
    Mode("requires_grad", changed(lambda m: m.hf.requires_grad_(True))),
    Mode("gradients of inputs", changed(lambda m: m.hf.enable_input_require_grads())), Mode("LoRA of PEFT", lora),
    Mode("prompt tuning of PEFT", virtual_tokens, "virtual tokens"),
    Mode("DataParallel", before(torch.nn.DataParallel), "DataParallel"),
    Mode("torch.compile before load", before(lambda hf: torch.compile(hf, backend="eager"))),
    Mode("compile() before load", before(lambda hf: (hf.compile(backend="eager"), hf)[1]), "compiled"),
    Mode("compile() after load", changed(lambda m: m.hf.compile(backend="eager")), "compiled"),
    Mode("compile() after load, and run", changed(_compile_and_run), "compiled"),
    Mode("one block compiled after load", changed(lambda m: m.hf.model.layers[1].compile(backend="eager")), "compiled"),
    Mode("half() after load", together(lambda m: m.hf.half())),
    Mode("bfloat16() after load", together(lambda m: m.hf.bfloat16())),
    Mode("double() after load", together(lambda m: m.hf.double()), "NaN or infinite"),
    Mode("half precision that overflows", overflow, "(layer 1|first at site).*dtype"),
    Mode("use_cache=False in the configuration", changed(lambda m: setattr(m.hf.config, "use_cache", False))),
    Mode("use_cache=False for generation", changed(lambda m: setattr(m.hf.generation_config, "use_cache", False))),
    Mode("sampling by default", changed(lambda m: m.hf.generation_config.update(do_sample=True, temperature=3.0))),
    Mode("output_hidden_states in the configuration",
         changed(lambda m: setattr(m.hf.config, "output_hidden_states", True))),
    Mode("return_dict=False in the configuration",
         changed(lambda m: setattr(m.hf.config, "return_dict", False)), "return_dict"),
    Mode("sdpa attention after load", changed(lambda m: m.hf.set_attn_implementation("sdpa"))),
    Mode("eager attention after load",
         changed(lambda m: m.hf.set_attn_implementation("eager"), attn_implementation="sdpa")),
    Mode("tied weights", changed(lambda m: None, tie_word_embeddings=True)),
    Mode("a tokenizer that pads left", changed(_pad_left)), Mode("inference_mode", within(torch.inference_mode)),
    Mode("inference_mode, load as well", within(torch.inference_mode, inside_load=True)),
    Mode("enable_grad", within(torch.enable_grad)),
    Mode("autocast", within(lambda: torch.autocast("cpu", torch.bfloat16)), "autocast"),
    Mode("autocast that is off", within(lambda: torch.autocast("cpu", enabled=False))),
    Mode("another default dtype", within(lambda: _default_dtype(torch.float64))),
    Mode("deterministic algorithms", within(lambda: _deterministic())), Mode("two threads", threads),
]  # fmt: skip


# tried in every test run
ONCE_WRONG = {
    "as loaded", "dropout, and train() after load", "gradient checkpointing and train()", "LoRA of PEFT",
    "prompt tuning of PEFT", "torch.compile before load", "compile() after load, and run", "half() after load",
    "half precision that overflows", "return_dict=False in the configuration", "inference_mode", "autocast",
    "two threads",
}  # fmt: skip


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run(
    backends: Iterable[str] = ("nnsight", "hooks"), verbs: Iterable[str] = tuple(VERBS), once_wrong: bool = False
) -> dict[str, Any]:
    """How many modes and verbs were tried, and how many gave other numbers or a foreign error."""
    chosen = [mode for mode in MODES if mode.name in ONCE_WRONG or not once_wrong]
    found = [one for mode in chosen for backend in backends for one in mode.run(backend, verbs)]
    return {"tried": len(found), "wrong": sum(one["outcome"] == "wrong" for one in found), "cases": found}


if __name__ == "__main__":
    result = run(tuple(sys.argv[1:]) or ("nnsight", "hooks"))
    for one in result["cases"]:
        if one["outcome"] == "wrong":
            print(f"{one['mode']} / {one['verb']} / {one['backend']}: {one['detail']}")
    print(json.dumps({key: result[key] for key in ("tried", "wrong")}))
