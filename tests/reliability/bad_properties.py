"""Bad input drawn by hypothesis: what is valid must be answered as an independent definition says, the rest refused."""

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from bad_cases import Case, World
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from steerlab import Contrast, Example, Request, data, metrics
from steerlab.capturing.rows import as_sites
from steerlab.models.positions import Match, resolve

ANY = st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=4), st.binary(max_size=3), st.just([]))
WORD = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates as well


def _mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 7).flatmap(lambda k: bad if k == 7 else good)


def _row(w: World) -> Any:
    return w.model.encode("two words", answer="an answer")


def _expected_tokens(position: Any, n: int, n_prompt: int) -> list[int] | None:
    """The tokens at a position by its definition in words; None where there is no such position."""
    named = {
        "last": [n_prompt - 1], "prompt": list(range(n_prompt)), "all": list(range(n)),
        "answer": list(range(n_prompt, n)), "prompt[2]": [2], "last-1": [n_prompt - 2], "prompt[999]": [],
    }  # fmt: skip
    if isinstance(position, str):
        parts = position.split("+")
        return None if set(parts) - set(named) else sorted({i for part in parts for i in named[part]})
    if isinstance(position, slice):
        return None if position.step == 0 else sorted(list(range(n))[position])
    if isinstance(position, int) and not isinstance(position, bool):
        return [position % n] if -n <= position < n else None
    return [] if isinstance(position, Match) else None


def positions() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    number = st.integers(-60, 60)
    ends = st.none() | number
    names = st.sampled_from(
        ["last", "prompt", "all", "answer", "prompt[2]", "last-1", "prompt[999]", "Last", "", "first"]
    )
    slices = st.builds(slice, ends, ends, st.none() | st.integers(-3, 3))
    unions = st.lists(names, min_size=1, max_size=3).map("+".join)
    strategy = st.one_of(number, slices, unions, ANY, st.just(Match("zebra")), st.lists(number, max_size=2))

    def case(position: Any) -> Case:
        row = _row(_WORLD)
        expected = _expected_tokens(position, len(row), row.n_prompt)
        return _case(
            "positions", position, lambda w: resolve(position, _row(w)), expected is not None, lambda r: r == expected
        )

    return strategy, case


def prompts() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    strategy = st.one_of(WORD, st.text(" \t\n\u2003\x00"), ANY)

    def case(prompt: Any) -> Case:
        valid = isinstance(prompt, str) and bool(prompt.strip()) and not any(0xD800 <= ord(c) <= 0xDFFF for c in prompt)

        def right(row: Any) -> bool:
            covered = [i for span in row.spans for i in range(span.start, span.end)]
            decoded = _WORLD.model.tokenizer.decode(list(row.ids), clean_up_tokenization_spaces=False)
            return prompt in row.text and decoded == row.text and covered == list(range(len(row)))

        return _case("prompts", prompt, lambda w: w.model.encode(prompt), valid, right)

    return strategy, case


def messages() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    content = st.one_of(
        st.text("ab ", max_size=4), ANY, st.lists(st.dictionaries(st.sampled_from(["type", "text"]), st.text("text")))
    )
    role = st.sampled_from(["user", "assistant", "system", None, 3])
    turn = st.fixed_dictionaries({}, optional={"role": role, "content": content}) | ANY
    user = st.fixed_dictionaries({"role": st.just("user"), "content": st.text("ab", min_size=1, max_size=4)})
    spoken = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": st.text("ab", min_size=1)}
    )
    before = st.lists(_mostly(spoken, turn), max_size=2)
    strategy = st.tuples(before, st.lists(user, min_size=1, max_size=1) | st.just([])).map(lambda p: [*p[0], *p[1]])

    def case(turns: Any) -> Case:
        def right(row: Any) -> bool:
            texts = [turn["content"] for turn in turns if isinstance(turn["content"], str)]
            return turns[-1]["role"] == "user" and all(text in row.text for text in texts)

        return Case("messages", _name(turns), lambda w: w.model.encode(turns), ".", right)

    return strategy, case


def alphas() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    number = st.floats() | st.integers(-5, 5)
    strategy = st.one_of(number, st.lists(number, max_size=3), ANY)

    def case(alpha: Any) -> Case:
        given_ = alpha if isinstance(alpha, list) else [alpha] * 2
        numbers = all(isinstance(a, int | float) and not isinstance(a, bool) for a in given_)
        valid = numbers and len(given_) == 2 and all(math.isfinite(a) and abs(a) < 3e38 for a in given_)

        def right(found: Any) -> bool:
            return torch.allclose(found, torch.tensor(given_, dtype=torch.float32))

        return _case("alphas", alpha, lambda w: Request(w.mean, alpha).alphas(2), valid, right)

    return strategy, case


def layers() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    number = st.integers(-6, 6)
    strategy = st.one_of(number, st.lists(_mostly(number, ANY), max_size=3), st.sampled_from(["all", "last"]), ANY)

    def case(given_: Any) -> Case:
        every = isinstance(given_, str) and given_ == "all"
        listed = list(range(4)) if every else given_ if isinstance(given_, list) else [given_]
        whole = all(isinstance(x, int) and not isinstance(x, bool) and -4 <= x < 4 for x in listed)
        expected = sorted({x % 4 for x in listed}) if whole and listed else None

        def right(found: Any) -> bool:
            return [site.layer for site in found] == expected

        return _case("layers", given_, lambda w: as_sites(given_, w.model), expected is not None, right)

    return strategy, case


def json_lines() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    value = st.one_of(WORD.map(lambda s: s.replace("\n", " ")), ANY.filter(lambda x: not isinstance(x, bytes)))
    record = st.dictionaries(st.sampled_from(["prompt", "id", "Prompt"]), value).map(json.dumps)
    good = st.text("abc", min_size=1, max_size=3).map(lambda prompt: json.dumps({"prompt": prompt}))
    lines = st.lists(_mostly(good, record), max_size=3).map(lambda some: "\n".join(some).encode())
    cut = st.tuples(lines, st.integers(0, 60)).map(lambda pair: pair[0][: pair[1]])
    strategy = st.one_of(lines, cut, st.binary(max_size=20))

    def case(content: bytes) -> Case:
        def right(found: Any) -> bool:
            return bool(found) and all(isinstance(e.prompt, str) and e.prompt.strip() for e in found)

        return Case("JSON lines", _name(content), lambda w: data.read_jsonl(w.file("t.jsonl", content)), ".", right)

    return strategy, case


def tables() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    cell = st.sampled_from(["1", "2", "Hi", "safe", "unsafe", "", '"', "a\nb", '"x', "\x00", ",", "é"])
    good = st.tuples(st.integers(0, 9), st.sampled_from(["Hi", '"a, b"', '"a\nb"', "é"])).map(
        lambda p: f"{p[0]},{p[1]},h,safe,x"
    )
    rows = st.lists(_mostly(good, st.lists(cell, min_size=3, max_size=6).map(",".join)), max_size=3)
    whole = "id,prompt,type,label,focus"
    header = _mostly(st.just(whole), st.sampled_from([f"\ufeff{whole}", "id,prompt,type,label", ""]))
    strategy = st.tuples(header, rows).map(lambda parts: "\n".join([parts[0], *parts[1]]))

    def case(content: str) -> Case:
        def right(found: Any) -> bool:
            return bool(found) and all(e.prompt.strip() and e.behavior in ("answer", "refuse") for e in found)

        return Case("CSV", _name(content), lambda w: data.xstest(w.file("t.csv", content)), ".", right)

    return strategy, case


def values() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    strategy = st.one_of(
        st.lists(st.floats(-9, 9), min_size=1, max_size=5), st.lists(st.floats() | ANY, max_size=3), ANY
    )

    def case(some: Any) -> Case:
        def right(found: Any) -> bool:
            return found.low <= found.value <= found.high and found.n == len(some)

        return Case("values", _name(some), lambda w: metrics.bootstrap_ci(some, n_boot=20), "bootstrap_ci", right)

    return strategy, case


def texts() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    rules = (
        metrics.is_refusal, metrics.defers_to_expert, metrics.repetition, metrics.final_number, metrics.parse_yes_no,
    )  # fmt: skip

    def case(text: Any) -> Case:
        return _case(
            "texts", text, lambda w: [rule(text) for rule in rules], isinstance(text, str), lambda r: len(r) == 5
        )

    return st.one_of(WORD, st.text("0123456789.,-−$%٣²"), ANY), case


def examples() -> tuple[st.SearchStrategy[Any], Callable[[Any], Case]]:
    spoken = st.text("abcdef ", min_size=2, max_size=5)
    field = _mostly(spoken, WORD | ANY)
    strategy = st.tuples(field, field, field, field)

    def case(fields: Any) -> Case:
        name, prompt, positive, negative = fields
        valid = all(isinstance(x, str) for x in fields) and name and positive.strip() and negative.strip()
        valid = bool(valid and positive != negative)

        def make(w: World) -> Example:
            return Example(prompt, id=name, contrast=Contrast(positive, negative))

        return _case(
            "examples", fields, make, valid, lambda e: (e.id, e.prompt, e.contrast.positive) == (name, prompt, positive)
        )

    return strategy, case


_WORLD = World()
PROPERTIES = (positions, prompts, messages, alphas, layers, json_lines, tables, values, texts, examples)


def _name(value: Any) -> str:
    return " ".join(repr(value).split())[:120]


def _case(area: str, value: Any, call: Callable[[World], Any], valid: bool, right: Callable[[Any], bool]) -> Case:
    """A case that must be answered if it is valid, and refused if not."""
    return Case(area, _name(value), call, "" if valid else ".", right if valid else None)


def drawn(n: int) -> list[Case]:
    """About `n` different cases of every property, the same ones each time."""
    found: dict[tuple[str, str], Case] = {}
    for prop in PROPERTIES:
        strategy, make = prop()

        def keep(value: Any) -> None:
            case = make(value)  # noqa: B023  called before the next property
            found.setdefault((case.area, case.name), case)

        quiet = settings(
            max_examples=n, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        quiet(given(value=strategy)(keep))()
    return list(found.values())
