"""Bad input to the verbs: positions, prompts and messages, examples, data, layers."""

import numpy as np
import pandas as pd
import torch
from bad_cases import Case, World, answers, refusals, same
from PIL import Image

import steerlab
from steerlab import Contrast, Example
from steerlab.models.positions import Match, resolve

TWO = ["one", "two words"]


def _positions() -> list[Case]:
    def read(p):
        return lambda w: w.capture(positions=p)

    def write(p):
        return lambda w: w.generate(steer=w.mean, positions=p)

    wrong = {
        "a float": (3.0, "position.*3.0"), "NaN": (float("nan"), "position.*nan"), "True": (True, "position.*True"),
        "np.True_": (np.True_, "position.*True"), "np.float64": (np.float64(1), "position.*1.0"),
        "complex": (1j, "position.*1j"), "bytes": (b"last", "position.*b'last'"),
        "an object": (object(), "position.*object"),
        "a dict": ({"last": 1}, "position.*(dict|last)"), "a set": ({"last"}, "position.*(set|last)"),
        "a class": (Match, "position.*Match"), "an empty name": ("", "position ''"), "a space": (" ", "position ' '"),
        "a trailing plus": ("last+", "position ''"), "a leading plus": ("+last", "position ''"),
        "spaces": (" last", "position ' last'"),
        "capitals": ("Last", "position 'Last'"), "prompt[-1]": ("prompt[-1]", r"prompt\[-1\]"),
        "prompt[]": ("prompt[]", r"prompt\[\]"), "last-": ("last-", "last-"), "last--1": ("last--1", "last--1"),
        "prompt[1:2]": ("prompt[1:2]", r"prompt\[1:2\]"), "too far back": ("last-1000", "last-1000 matches no token"),
        "too far on": ("prompt[1000]", r"prompt\[1000\] matches no token"),
        "outside": (1000, "position 1000 is outside"), "outside below": (-1000, "position -1000 is outside"),
        "a huge number": (10**30, "position 10*.* is outside"), "an empty slice": (slice(5, 2), "5:2 matches no token"),
        "step 0": (slice(0, 4, 0), "(slice|position).*0"),
        "a slice of floats": (slice(0.5, 2.0), "(slice|position).*0.5"),
        "a slice of names": (slice("a"), "(slice|position).*a"), "Match('')": (Match(""), "match: matches no token"),
        "Match absent": (Match("zebra"), "match:zebra matches no token"), "Match(3)": (Match(3), "3"),
        "Match(None)": (Match(None), "None"),
        "Match(bytes)": (Match(b"one"), "one"), "a float mask": (torch.ones(2, 9), "mask.*float32"),
        "an int mask": (torch.ones(2, 9).long(), "mask.*int64"),
        "a 1-d mask": (torch.ones(9, dtype=torch.bool), r"mask.*\(9,\)"),
        "a 3-d mask": (torch.ones(2, 2, 2, dtype=torch.bool), r"mask.*\(2, 2, 2\)"),
        "too few mask rows": (torch.ones(1, 4, dtype=torch.bool), "mask has 1 rows"),
        "too many mask rows": (torch.ones(5, 4, dtype=torch.bool), "mask.*5"),
        "too many mask columns": (torch.ones(2, 4000, dtype=torch.bool), "mask marks token"),
        "an empty mask": (torch.zeros(2, 0, dtype=torch.bool), "mask.*matches no token"),
        "a mask without marks": (torch.zeros(2, 4, dtype=torch.bool), "mask.*matches no token"),
        "a NumPy mask": (np.ones((2, 4), dtype=bool), "position.*(array|ndarray)"),
    }  # fmt: skip
    cases = [(f"{name}, read", read(p), says) for name, (p, says) in wrong.items()]
    cases += [(f"{name}, written", write(p), says) for name, (p, says) in wrong.items()]
    cases += [
        ("an empty list", read([]), "positions"),
        ("one twice", read(["last", "last"]), "last.*(twice|more than once)"),
        ("3 and '3' of one name", read([3, np.int64(3)]), "3.*(twice|more than once)"),
        ("two masks", read([torch.ones(2, 4, dtype=torch.bool)] * 2), "mask.*(twice|more than once)"),
        ("None in a list", read(["last", None]), "position.*None"),
        ("a list, written", write(["last"]), r"position.*\['last'\]"),
        ("context of a wrong type", lambda w: w.capture(w.examples, context=2.5), "position.*2.5"),
        ("an unknown context", lambda w: w.capture(w.examples, context="first"), "position 'first'"),
        ("images of a text model", read("images"), "images matches no token"),
        ("system of a plain prompt", lambda w: steerlab.capture(w.plain, TWO, positions="system", progress=False),
         "system matches no token"),
        ("answer of a prompt", read("answer"), "answer matches no token"),
        ("'generated' and one token", lambda w: w.generate(steer=w.mean, positions="generated", max_new_tokens=1),
         "no token was steered"),
    ]  # fmt: skip
    row = lambda w: w.model.encode("two words")  # noqa: E731
    right = [
        ("np.int64", lambda w: (w.capture(positions=np.int64(3)), w.capture(positions=3)), lambda r: same(*r)),
        ("np.int64, written",
         lambda w: (w.generate(steer=w.mean, positions=np.int64(3)), w.generate(steer=w.mean, positions=3)),
         lambda r: same(*r)),
        ("a name twice in a union", lambda w: (resolve("last+last", row(w)), resolve("last", row(w))),
         lambda r: r[0] == r[1]),
        ("last-0", lambda w: (resolve("last-0", row(w)), resolve("last", row(w))), lambda r: r[0] == r[1]),
        ("a backward slice", lambda w: (resolve(slice(None, None, -1), row(w)), len(row(w))),
         lambda r: r[0] == list(range(r[1]))),
        ("a slice of NumPy integers", lambda w: resolve(slice(np.int64(0), np.int64(3)), row(w)),
         lambda r: r == [0, 1, 2]),
        ("a negative number", lambda w: (resolve(-1, row(w)), len(row(w))), lambda r: r[0] == [r[1] - 1]),
        ("context=None", lambda w: w.capture(w.examples[:2], context=None),
         lambda a: set(a.index["side"]) == {"positive", "negative"}),
    ]  # fmt: skip
    return refusals("positions", cases) + answers("positions", right)


def _prompts() -> list[Case]:
    def encode(*args, **options):
        return lambda w: w.model.encode(*args, **options)

    def user(content):
        return encode([{"role": "user", "content": content}])

    turn = {"role": "user", "content": "Hi"}
    image = Image.new("RGB", (8, 8))
    cases = [
        ("an empty text", encode(""), "prompt.*empty"), ("spaces", encode("  \n\t"), "prompt.*empty"),
        ("None", encode(None), "prompt.*None"), ("a number", encode(3), "prompt.*3"),
        ("a float", encode(2.5), "prompt.*2.5"),
        ("NaN", encode(float("nan")), "prompt.*nan"), ("bytes", encode(b"Hi"), "prompt.*b'Hi'"),
        ("True", encode(True), "prompt.*True"),
        ("bytes without a template", lambda w: w.plain.encode(b"Hi"), "(prompt|text).*b'Hi'|bytes"),
        ("a number without a template", lambda w: w.plain.encode(3), "prompt.*3|text"),
        ("a lone surrogate", encode("a\ud800b"), "surrogate|UTF-8"),
        ("a lone surrogate without a template", lambda w: w.plain.encode("\udfff"), "surrogate|UTF-8"),
        ("no messages", encode([]), "messages"),
        ("one message, not in a list", encode(turn), "message.*list|list.*message"),
        ("texts as messages", encode(["Hi", "there"]), "message.*Hi"),
        ("None as a message", encode([None]), "message.*None"),
        ("pairs as messages", encode([("user", "Hi")]), "message.*user"),
        ("a message without content", encode([{"role": "user"}]), "message.*content"),
        ("a message without role", encode([{"content": "Hi"}]), "message.*role"),
        ("content None", user(None), "content.*None"),
        ("content of a number", user(3), "content.*3"), ("content of bytes", user(b"Hi"), "content.*b'Hi'"),
        ("content of texts", user(["Hi"]), "content.*Hi"),
        ("content of a dict", user({"type": "text", "text": "Hi"}), "content.*list|content.*dict|content"),
        ("a part without type", user([{"text": "Hi"}]), "content.*type|part"),
        ("a text part without text", user([{"type": "text"}]), "content|part"),
        ("a text part of a number", user([{"type": "text", "text": 3}]), "content|part|3"),
        ("empty content", user(""), "empty"), ("blank content", user("  "), "empty"), ("no parts", user([]), "empty"),
        ("nested messages", encode([[turn]]), "message"),
        ("an unknown last role", encode([{"role": "User", "content": "Hi"}]), "user"),
        ("a role of a number", encode([{"role": 3, "content": "x"}, turn]), "role.*3"),
        ("a role None", encode([{"role": None, "content": "x"}, turn]), "role.*None"),
        ("the assistant last", encode([turn, {"role": "assistant", "content": "Hello"}]), "user's turn"),
        ("only a system message", encode([{"role": "system", "content": "x"}]), "user's turn"),
        ("a surrogate in a message", user("\ud800"), "surrogate|UTF-8"),
        ("a generator of messages", lambda w: w.model.encode(m for m in [turn]), "message|prompt"),
        ("messages without a template", lambda w: w.plain.encode([turn]), "chat template"),
        ("a system message without a template", lambda w: w.plain.encode("Hi", system="Be brief."), "system"),
        ("a system message that the template drops", lambda w: w.deaf.encode("Hi", system="Be brief."), "system"),
        ("a system message in messages that the template drops",
         lambda w: w.deaf.encode([{"role": "system", "content": "Be brief."}, turn]), "system"),
        ("two system messages", encode([{"role": "system", "content": "x"}, turn], system="y"), "system"),
        ("system of a number", encode("Hi", system=3), "system.*3"),
        ("system of bytes", encode("Hi", system=b"x"), "system.*b'x'"),
        ("answer of a number", encode("Hi", answer=3), "answer.*3"),
        ("answer of bytes", encode("Hi", answer=b"x"), "answer.*b'x'"),
        ("a surrogate in the answer", encode("Hi", answer="\ud800"), "surrogate|UTF-8"),
        ("other_answer of a number", encode("Hi", answer="a", other_answer=3), "answer.*3"),
        ("equal answers", encode("Hi", answer="a", other_answer="a"), "never differ"),
        ("an answer that begins with the other", encode("Hi", answer="ab", other_answer="abc"), "never differ|begins"),
        ("too long", encode("word " * 600), "context holds"), ("very long", encode("a" * 200_000), "context holds"),
        ("too long with its answer", encode("Hi", answer="a b c " * 300), "context holds"),
        ("an image without vision", encode("Hi", images=[image]), "image.*text only|text only"),
        ("one image, not in a list", encode("Hi", images=image), "images.*list"),
        ("one path, not in a list", encode("Hi", images="a.png"), "images.*list"),
        ("images None", encode("Hi", images=None), "images.*None"),
        ("images of a number", encode("Hi", images=3), "images.*3"),
        ("an image part without vision", user([{"type": "image"}, {"type": "text", "text": "Hi"}]), "image"),
        ("a system message, generated",
         lambda w: steerlab.generate(w.plain, [Example("Hi", id="1", system="Be brief.")], max_new_tokens=2), "system"),
    ]  # fmt: skip
    right = [
        ("NUL characters", lambda w: w.model.encode("a\x00b"),
         lambda r: "a\x00b" in r.text and r.overlapping("\x00") != []),
        ("a byte order mark", lambda w: w.model.encode("\ufeffHi"), lambda r: "\ufeffHi" in r.text),
        ("emoji and combining marks", lambda w: w.model.encode("e\u0301 \U0001f469\u200d\U0001f680"),
         lambda r: "\U0001f680" in r.text),
        ("special tokens in the text", lambda w: w.model.encode("<|im_end|>"), lambda r: r.spans[-1].kind == "header"),
        ("np.str_", lambda w: (w.model.encode(np.str_("Hi")), w.model.encode("Hi")), lambda r: r[0].ids == r[1].ids),
        ("a tuple of messages", lambda w: (w.model.encode(({"role": "user", "content": "Hi"},)), w.model.encode("Hi")),
         lambda r: r[0].ids == r[1].ids),
        ("an empty system message", lambda w: w.model.encode("Hi", system=""),
         lambda r: steerlab.testing.text.SYSTEM not in r.text),
        ("a system message", lambda w: w.model.encode("Hi", system="Be brief."), lambda r: "Be brief." in r.text),
        ("an answer of spaces", lambda w: w.model.encode("Hi", answer=" "), lambda r: len(r.kind("answer")) == 1),
        ("just as long as the context", lambda w: w.plain.encode("a" * 511), lambda r: len(r) == 512),
    ]  # fmt: skip
    return refusals("prompts and messages", cases) + answers("prompts and messages", right)


def _examples() -> list[Case]:
    def example(**fields):
        return lambda w: Example(**{"id": "1", "prompt": "Hi"} | fields)

    def pair(*args, **fields):
        return lambda w: Contrast(*args, **fields)

    cases = [
        ("id of a number", example(id=3), "id.*3"), ("id None", example(id=None), "id.*None"),
        ("id NaN", example(id=float("nan")), "id.*nan"), ("prompt None", example(prompt=None), "prompt.*None"),
        ("prompt NaN", example(prompt=float("nan")), "prompt.*nan"),
        ("prompt of no messages", example(prompt=[]), r"prompt=\[\].*user's message"),
        ("prompt of bytes", example(prompt=b"Hi"), "prompt.*b'Hi'"),
        ("behavior None", example(behavior=None), "behavior.*None"),
        ("behavior NaN", example(behavior=float("nan")), "behavior.*nan"),
        ("behavior of a list", example(behavior=["a"]), r"behavior.*\['a'\]"),
        ("split None", example(split=None), "split.*None"), ("system of a number", example(system=3), "system.*3"),
        ("contrast of a pair", example(contrast=("a", "b")), r"contrast.*\('a', 'b'\)"),
        ("contrast of a dict", example(contrast={"positive": "a", "negative": "b"}), "contrast.*positive"),
        ("images of one path", example(images="a.png"), "images.*a.png"),
        ("images None", example(images=None), "images.*None"), ("images of numbers", example(images=(3,)), "images.*3"),
        ("extra prompts None", example(extra_prompts=None), "extra_prompts.*None"),
        ("extra prompts of a list", example(extra_prompts=["task"]), "extra_prompts.*task"),
        ("an extra prompt of a number", example(extra_prompts={"task": 3}), "extra_prompts.*3"),
        ("a reserved extra prompt", example(extra_prompts={"positive": "x"}), "reserved"),
        ("meta None", example(meta=None), "meta.*None"),
        ("equal answers", pair("a", "a"), "both answers"), ("an empty answer", pair("", "b"), "non-empty"),
        ("a blank answer", pair("a", " "), "non-empty"),
        ("answer None", pair(None, "b"), "positive.*None|None.*positive"),
        ("answer of a number", pair("a", 3), "negative.*3|3.*negative"),
        ("answer of bytes", pair(b"a", "b"), "b'a'"),
        ("suffix None", pair("a", "b", suffix=None), "suffix.*None"),
        ("end_turn of a text", pair("a", "b", end_turn="no"), "end_turn.*no"),
        ("position None", pair("a", "b", position=None), "position.*None"),
        ("position of a list", pair("a", "b", position=["answer"]), r"position.*\['answer'\]"),
        ("position True", pair("a", "b", position=True), "position.*True"),
        ("an unknown position",
         lambda w: w.capture([Example("Hi", id="1", contrast=Contrast("a", "b", position="middle"))]),
         "position 'middle'"),
        ("repeated ids", lambda w: w.capture([Example("a", id="1"), Example("b", id="1")]), "'1' occurs twice"),
        ("an empty prompt", lambda w: w.capture([Example(" ", id="1")]), "empty"),
        ("replaced by nothing", lambda w: Example("Hi", id="1").replace(prompt=None), "prompt.*None"),
        ("an unknown extra prompt", lambda w: w.capture([Example("Hi", id="1")], extra_prompts=["task"]),
         "extra prompt 'task'"),
        ("extra prompts of one text",
         lambda w: w.capture([Example("Hi", id="1", extra_prompts={"task": "x"})], extra_prompts="task"),
         "extra_prompts.*task"),
    ]  # fmt: skip
    right = [
        ("answers that differ by a space", pair("a", "a "), lambda c: c.negative == "a "),
        ("images of a list", example(images=["a.png"]), lambda e: tuple(e.images) == ("a.png",)),
        ("an unusual id", example(id="a/b\n\x00"), lambda e: e.id == "a/b\n\x00"),
    ]
    return refusals("examples and contrasts", cases) + answers("examples and contrasts", right)


def _data() -> list[Case]:
    frame = pd.DataFrame({"prompt": TWO, "answer": ["a", "b"]})
    wrong = {
        "one text": ("one prompt", "one string|one text"), "bytes": (b"abc", "bytes"),
        "a dict": ({"one": 1, "two": 2}, "dict"), "a DataFrame": (frame[["answer"]], "DataFrame.*answer"),
        "a set": ({"one", "two"}, "set"), "a frozenset": (frozenset(TWO), "set"), "None": (None, "None"),
        "a number": (3, "3"), "nothing": ([], "empty"),
        "an Example alone": (Example("Hi", id="1"), "Example.*list|list.*Example|one Example"),
        "a list of numbers": ([1, 2], "item 0.* 1 "), "a list of lists": ([["a"]], "item 0.*a"),
        "a list with None": (["a", None], "item 1.*None"), "a list with NaN": (["a", float("nan")], "item 1.*nan"),
        "a list of bytes": ([b"a"], "item 0.*b'a'"), "a list of dicts": ([{"prompt": "a"}], "prompt.*dict|prompt"),
        "a tensor": (torch.ones(2), "prompt|tensor"), "an array of numbers": (np.ones(2), "item 0.*1.0"),
        "a class": (Example, "Example|type"), "a path": (World, "World|type"),
        "dict values of one": ({"a": "x"}.items(), "prompt"), "an empty frame": (pd.DataFrame(), "DataFrame"),
    }  # fmt: skip
    verbs = {
        "captured": lambda d: lambda w: w.capture(d), "generated": lambda d: lambda w: w.generate(d),
        "scored": lambda d: lambda w: steerlab.score(w.model, d, ["a", "b"]),
    }  # fmt: skip
    cases = [(f"{name}, {verb}", call(d), says) for name, (d, says) in wrong.items() for verb, call in verbs.items()]
    cases += [
        ("a DataFrame without answers, swept", lambda w: w.sweep(data=frame), "no contrast"),
        ("no contrast, swept", lambda w: w.sweep(data=["Hi"]), "contrast"),
        ("answers of one text", lambda w: steerlab.score(w.model, TWO, "ab"), "answers.*(one|list)|list"),
        ("answers None", lambda w: steerlab.score(w.model, TWO, None), "answers.*None"),
        ("answers with None", lambda w: steerlab.score(w.model, TWO, ["a", None]), "answer.*None"),
        ("answers of numbers", lambda w: steerlab.score(w.model, TWO, [1, 2]), "answer.*1"),
        ("an empty answer", lambda w: steerlab.score(w.model, TWO, ["a", ""]), "empty"),
        ("too few answers", lambda w: steerlab.score(w.model, TWO, ["a"]), "2 prompts but 1"),
        ("a dict of answers", lambda w: steerlab.score(w.model, TWO, {"a": 1, "b": 2}), "answers.*dict|dict.*answers"),
        ("a set of answers", lambda w: steerlab.score(w.model, TWO, {"a", "b"}), "answers.*set|set.*answers"),
        ("a model's name for a model", lambda w: steerlab.generate("smollm2", TWO), "model.*smollm2|load"),
        ("the Hugging Face model", lambda w: steerlab.capture(w.model.hf, TWO, progress=False), "model.*load"),
        ("None for a model", lambda w: steerlab.score(None, TWO, TWO), "model.*None|load"),
    ]  # fmt: skip
    right = [
        ("a generator", lambda w: (w.capture(p for p in TWO), w.capture(TWO)), lambda r: same(*r)),
        ("a generator, generated", lambda w: (w.generate(p for p in TWO), w.generate(TWO)), lambda r: same(*r)),
        ("a Series", lambda w: (w.capture(frame["prompt"]), w.capture(TWO)), lambda r: same(*r)),
        ("an array of texts", lambda w: (w.capture(np.array(TWO)), w.capture(TWO)), lambda r: same(*r)),
        ("a tuple", lambda w: (w.capture(tuple(TWO)), w.capture(TWO)), lambda r: same(*r)),
        ("dict values", lambda w: (w.capture(dict(zip("ab", TWO, strict=True)).values()), w.capture(TWO)),
         lambda r: same(*r)),
        ("a Series of answers",
         lambda w: (steerlab.score(w.model, TWO, frame["answer"]), steerlab.score(w.model, TWO, ["a", "b"])),
         lambda r: r[0].equals(r[1])),
        ("the same prompt twice", lambda w: w.capture(["a", "a"]),
         lambda a: bool(torch.equal(a.values[0], a.values[1]))),
    ]  # fmt: skip
    return refusals("data", cases) + answers("data", right)


def _layers() -> list[Case]:
    wrong = {
        "True": (True, "layer.*True"), "False": (False, "layer.*False"), "np.True_": (np.True_, "layer.*True"),
        "a float": (1.0, "layer.*1.0"), "NaN": (float("nan"), "layer.*nan"),
        "a text": ("1", "layer"), "an unknown word": ("last", "layer"), "None": (None, "layer.*None"),
        "nothing": ([], "layer.*empty"), "no range": (range(0), "layer.*empty"),
        "too high": (4, "layer 4 does not exist"), "too low": (-5, "layer -5 does not exist"),
        "huge": (10**12, "layer 10*.*does not exist"), "True in a list": ([0, True], "layer.*True"),
        "a float in a list": ([0, 1.5], "layer.*1.5"), "a text in a list": (["1"], "layer.*'1'"),
        "None in a list": ([None], "layer.*None"), "a dict": ({0: 1}, "layer.*dict"),
        "a set of floats": ([0.0], "layer.*0.0"), "an array of floats": (np.array([0.0, 1.0]), "layer.*0"),
        "a mask": (np.array([True, False]), "layer.*True"), "bytes": (b"\x01", "layer.*b"),
        "Site of a float": (steerlab.Site(1.5), "layer.*1.5"), "Site of a text": (steerlab.Site("1"), "layer.*1"),
        "Site True": (steerlab.Site(True), "layer.*True"), "Site None": (steerlab.Site(None), "layer.*None"),
        "Site too high": (steerlab.Site(9), "layer 9 does not exist"),
        "the vision tower": (steerlab.Site(0, part="vision"), "vision"),
        "the projector": (steerlab.Site(0, part="projector"), "projector"),
        "nested": ([[0, 1]], r"layer.*\[0, 1\]"),
    }  # fmt: skip
    cases = [(f"{name}, captured", lambda w, x=x: w.capture(layers=x), says) for name, (x, says) in wrong.items()]
    cases += [
        (f"{name}, swept", lambda w, x=x: w.sweep(steerlab.MeanDifference(0), layers=x, train=w.acts, alphas=[1.0]),
         says)
        for name, (x, says) in wrong.items() if name not in ("None",)
    ]  # fmt: skip
    vector = torch.ones(32)
    cases += [
        (f"{name}, steered", lambda w, x=x: w.generate(steer=steerlab.SteeringVector({x: vector})), says)
        for name,
        (x, says) in wrong.items() if name in ("True", "a float", "a text", "None", "too high", "too low", "NaN",
         "the vision tower")
    ]  # fmt: skip
    right = [
        ("NumPy integers", lambda w: (w.capture(layers=[np.int64(1)]), w.capture(layers=[1])), lambda r: same(*r)),
        ("an array", lambda w: (w.capture(layers=np.arange(3)), w.capture(layers=[0, 1, 2])), lambda r: same(*r)),
        ("a tensor", lambda w: (w.capture(layers=torch.arange(3)), w.capture(layers=[0, 1, 2])), lambda r: same(*r)),
        ("a range", lambda w: (w.capture(layers=range(3)), w.capture(layers=[0, 1, 2])), lambda r: same(*r)),
        ("from the top", lambda w: (w.capture(layers=-1), w.capture(layers=3)), lambda r: same(*r)),
        ("twice", lambda w: w.capture(layers=[1, 1, -3]), lambda a: a.layers == (1,)),
        ("unordered", lambda w: (w.capture(layers=[2, 0]), w.capture(layers=[0, 2])), lambda r: same(*r)),
        ("a Series", lambda w: (w.capture(layers=pd.Series([0, 2])), w.capture(layers=[0, 2])), lambda r: same(*r)),
    ]  # fmt: skip
    return refusals("layers", cases) + answers("layers", right)


CASES = [*_positions(), *_prompts(), *_examples(), *_data(), *_layers()]
