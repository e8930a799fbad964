"""Bad input to the readers of data sets, the metrics and the plots."""

import gzip
import json
import math

import matplotlib
import numpy as np
import pandas as pd
import torch
from bad_cases import Case, answers, refusals

from steerlab import Example, data, metrics, plots

NAN, INF = float("nan"), float("inf")
ITEM = {"question": "Art?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
POPE = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"}
CSV = "id,prompt,type,label,focus\n1,Hi,homonyms,safe,x\n"


def _lines(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _readers() -> list[Case]:
    def jsonl(content, name="tasks.jsonl", **options):
        return lambda w: data.read_jsonl(w.file(name, content), **options)

    def xstest(content):
        return lambda w: data.xstest(w.file("x.csv", content))

    def mwe(*records):
        return lambda w: data.mwe(w.file("openness.jsonl", _lines(*records)), "openness")

    def pope(*records, **options):
        return lambda w: data.pope_file(w.file("coco_pope_random.json", _lines(*records)), **options)

    def truthful(content):
        return lambda w: data.truthfulqa_mc(w.file("mc_task.json", content))

    def coco(content):
        return lambda w: data.coco_objects(
            w.file("instances.json", content if isinstance(content, str) else json.dumps(content))
        )

    def guard(*records):
        return lambda w: data.vlguard(w.file("test.json", json.dumps(list(records))))

    prompt = {"prompt": "Hi"}
    cases = [
        ("no such file", lambda w: data.read_jsonl(w.folder / "nowhere.jsonl"), "no file.*nowhere"),
        ("a folder", lambda w: data.read_jsonl(w.folder), "no file"),
        ("None for a path", lambda w: data.read_jsonl(None), "path.*None|None.*path"),
        ("a number for a path", lambda w: data.read_jsonl(3), "path.*3|3.*path"), ("an empty file", jsonl(""), "empty"),
        ("blank lines", jsonl("\n \n"), "empty"), ("an empty list", jsonl("[]"), "empty"),
        ("a truncated line", jsonl('{"prompt": "Hi"}\n{"prompt": "Ho'), "line 2 is not JSON"),
        ("a truncated list", jsonl('[{"prompt": "Hi"},'), "not JSON"), ("a CSV", jsonl("prompt\nHi\n"), "not JSON"),
        ("HTML", jsonl("<html></html>"), "not JSON"),
        ("a list in a line", jsonl('{"prompt": "Hi"}\n["a"]\n'), "line 2 holds a list"),
        ("null", jsonl("null\n"), "NoneType"), ("another field", jsonl(_lines({"text": "Hi"})), "no field 'prompt'"),
        ("a prompt of a number", jsonl(_lines({"prompt": 3})), "'prompt' must be a non-empty text, got 3"),
        ("a prompt of null", jsonl(_lines({"prompt": None})), "got None"),
        ("a prompt of NaN", jsonl('{"prompt": NaN}\n'), "got nan"),
        ("an empty prompt", jsonl(_lines({"prompt": " "})), "non-empty text"),
        ("a prompt of a list", jsonl(_lines({"prompt": ["Hi"]})), "non-empty text"),
        ("ids twice", jsonl(_lines(prompt | {"id": 1}, prompt | {"id": 1}), id_field="id"), "twice"),
        ("no id", jsonl(_lines(prompt), id_field="id"), "no field 'id'"),
        ("an id of null", jsonl(_lines(prompt | {"id": None}), id_field="id"), "'id'.*None|None.*'id'"),
        ("an id of a list", jsonl(_lines(prompt | {"id": [1]}), id_field="id"), r"'id'.*\[1\]"),
        ("no meta field", jsonl(_lines(prompt), meta_fields=["topic"]), "no field 'topic'"),
        ("meta fields of one text", jsonl(_lines(prompt | {"topic": "x"}), meta_fields="topic"), "meta_fields.*topic"),
        ("UTF-16", jsonl(_lines(prompt).encode("utf-16")), "UTF-8"),
        ("Latin-1", jsonl('{"prompt": "caf\xe9"}\n'.encode("latin-1")), "UTF-8"),
        ("zeros", jsonl(b"\x00" * 20), "not JSON|UTF-8"),
        ("gzip under another name", jsonl(gzip.compress(b"{}")), "UTF-8"),
        ("no gzip", jsonl(b"plain", "t.jsonl.gz"), "cannot be read"),
        ("truncated gzip", jsonl(gzip.compress(_lines(prompt).encode())[:-9], "t.jsonl.gz"), "cannot be read"),
        ("a surrogate", lambda w: w.capture(data.read_jsonl(w.file("t.jsonl", '{"prompt": "\\ud800"}\n'))),
         "surrogate|UTF-8"),
        ("deeply nested", jsonl("[" * 100_000), "not JSON|nested"),
        ("an infinite number", jsonl('{"prompt": Infinity}'), "got inf"),
        ("a huge number", jsonl('{"prompt": ' + "1" * 5000 + "}"), "not JSON|got 1|digits"),
        ("a CSV without columns", xstest("prompt\nHi\n"), "lacks the columns"),
        ("an empty CSV", xstest(""), "lacks the columns"),
        ("a CSV without rows", xstest("id,prompt,type,label,focus\n"), "empty"),
        ("a short row", xstest("id,prompt,type,label,focus\n1,Hi\n"), "label"),
        ("an unknown label", xstest(CSV.replace("safe", "risky")), "risky"),
        ("an empty prompt in a CSV", xstest(CSV.replace("Hi", "")), "prompt"),
        ("rows twice", xstest(CSV + "1,Hi,homonyms,safe,x\n"), "twice"),
        ("another separator", xstest(CSV.replace(",", ";")), "lacks the columns"),
        ("a CSV in UTF-16", xstest(CSV.encode("utf-16")), "UTF-8"),
        ("a CSV with NUL", xstest(CSV.replace("Hi", "H\x00i").replace("safe", "sa\x00fe")), "label|NUL"),
        ("a field of a million characters", xstest(CSV.replace("Hi", "a" * 1_000_000).replace("safe", "b" * 200_000)),
         "label|field"),
        ("an open quotation", xstest(CSV.replace("Hi", '"Hi')), "label"),
        ("an empty id", xstest(CSV.replace("\n1,", "\n,")), "id"),
        ("an item without answers", mwe({"question": "Art?"}), "answer_matching_behavior"),
        ("equal answers", mwe(ITEM | {"answer_not_matching_behavior": " Yes"}), "answers are 'Yes' and 'Yes'"),
        ("three options", mwe(ITEM | {"answer_matching_behavior": " (C)", "answer_not_matching_behavior": " (A)"}),
         r"\(C\)"),
        ("options that are not shown",
         mwe(ITEM | {"answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}), "does not show"),
        ("an answer of a list", mwe(ITEM | {"answer_matching_behavior": ["Yes"]}), "non-empty text"),
        ("no such set", lambda w: data.mwe(w.saved, "openness"), "no set 'openness'"),
        ("no such folder", lambda w: data.mwe("./nowhere", "openness"), "nowhere"),
        ("a set's name None", lambda w: data.mwe(w.saved, None), "name.*None|None.*name"),
        ("an unknown source", lambda w: data.mwe(w.saved, "openness", source="gpt"), "source.*gpt"),
        ("an unknown split", lambda w: data.mwe(w.saved, "openness", split="dev"), "split.*dev"),
        ("no true answer", truthful('[{"question": "Q?", "mc1_targets": {"a": 0}}]'), "true answer"),
        ("targets of a list", truthful('[{"question": "Q?", "mc1_targets": ["a"]}]'), "mc1_targets"),
        ("no targets", truthful('[{"question": "Q?"}]'), "mc1_targets"),
        ("a label that is no answer", pope(POPE | {"label": "maybe"}), "maybe"),
        ("no question", pope({"question_id": 1, "image": "a.jpg", "label": "no"}), "no field 'text'"),
        ("a question twice", pope(POPE, POPE), "twice"),
        ("a question of null", pope(POPE | {"text": None}), "text.*None"),
        ("an empty question", pope(POPE | {"text": ""}), "text|prompt"),
        ("no images there", lambda w: data.pope_file(w.file("p.json", _lines(POPE)), images=w.folder),
         "lacks 1 images"),
        ("no folder of images", lambda w: data.pope_file(w.file("p.json", _lines(POPE)), images="./nowhere"),
         "nowhere"),
        ("missing", pope(POPE, images=".", missing="warn"), "missing.*warn"),
        ("an instruction of a number", pope(POPE, instruction=3), "instruction.*3"),
        ("captions instead of objects", coco({"images": [], "annotations": []}), "categories"),
        ("images without names", coco({"images": [{"id": 1}], "annotations": [], "categories": []}),
         "format|file_name"),
        ("an annotation of no image",
         coco({"images": [], "annotations": [{"image_id": 1, "category_id": 1}], "categories": []}), "1 annotations"),
        ("an unknown category",
         coco({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "category_id": 7}],
               "categories": []}),
         "7"),
        ("a category without name", coco({"images": [], "annotations": [], "categories": [{"id": 1}]}), "categor|name"),
        ("annotations of a number", coco({"images": [], "annotations": 3, "categories": []}), "format|annotations"),
        ("objects of a text", coco(_lines({"image": "a", "objects": "dog"})), "objects.*dog"),
        ("objects of numbers", coco(_lines({"image": "a", "objects": [3]})), "object is 3"),
        ("a record without turns", guard({"id": "x", "image": "a", "safe": True}), "instr-resp"),
        ("turns of a number", guard({"id": "x", "image": "a", "safe": True, "instr-resp": 3}), "instr-resp"),
        ("turns of texts", guard({"id": "x", "image": "a", "safe": True, "instr-resp": ["Hi"]}),
         "instr-resp|safe image"),
        ("a safe image with an unsafe turn",
         guard({"id": "x", "image": "a", "safe": True, "instr-resp": [{"instruction": "Hi", "response": "a"}]}),
         "a safe image"),
        ("no id", guard({"image": "a", "safe": True, "instr-resp": []}), "no field 'id'"),
        ("nothing to ask", guard({"id": "x", "image": "a", "safe": True, "instr-resp": []}), "empty"),
        ("a turn of null",
         guard({"id": "x", "image": "a", "safe": True, "instr-resp": [{"safe_instruction": None, "response": "a"}]}),
         "safe_instruction|prompt"),
        ("no easy-VQA", lambda w: data.easy_vqa(w.folder), "split 'train'"),
        ("a broken zip", lambda w: data.easy_vqa(w.file("train.zip", "x").parent), "broken"),
        ("questions of numbers", lambda w: data.easy_vqa(w.file("train/questions.json", "[1]").parent.parent),
         "broken"),
        ("no NLVR", lambda w: data.nlvr(w.folder), "no file"),
        ("a prompt without place", lambda w: data.nlvr(w.folder, prompt="True?"), "sentence"),
        ("no MM-SafetyBench", lambda w: data.mm_safety_bench(w.folder), "lacks 01"),
        ("an unknown kind of image", lambda w: data.mm_safety_images(w.folder, "PHOTO"), "kind.*PHOTO"),
        ("personas of one sentence", lambda w: data.persona_prompts(w.file("p.json", '{"openness": ["a"]}')),
         "openness"),
        ("personas of a list", lambda w: data.persona_prompts(w.file("p.json", "[1]")), "holds a list"),
        ("an empty phrase", lambda w: data.draw_phrase(" "), "a word or more"),
        ("a phrase of None", lambda w: data.draw_phrase(None), "phrase.*None|None.*phrase"),
        ("a narrow image", lambda w: data.draw_phrase("a", 3), "3 pixels"),
        ("a width of 64.5", lambda w: data.draw_phrase("a", 64.5), "width.*64.5|64.5 pixels"),
    ]  # fmt: skip
    many = [Example("Hi", id=str(i), behavior="ab"[i % 2]) for i in range(8)]
    cases += [
        ("fractions that do not sum to 1", lambda w: data.stratified_split(many, {"train": 0.5}), "sum to 1"),
        ("fractions of NaN", lambda w: data.stratified_split(many, {"train": NAN, "test": 0.5}), "sum to 1|nan"),
        ("fractions of a list", lambda w: data.stratified_split(many, [0.5, 0.5]), r"fractions.*\[0.5"),
        ("fractions of texts", lambda w: data.stratified_split(many, {"train": "all"}), "fractions.*all"),
        ("no fractions", lambda w: data.stratified_split(many, {}), "sum to 1"),
        ("a fraction of 1", lambda w: data.validation_split(many, 1.0), "between 0 and 1"),
        ("a fraction of NaN", lambda w: data.validation_split(many, NAN), "between 0 and 1|nan"),
        ("a fraction of a text", lambda w: data.validation_split(many, "0.2"), "fraction.*0.2"),
        ("texts to split", lambda w: data.validation_split(["a", "b"]), "Example"),
        ("a DataFrame to split", lambda w: data.stratified_split(pd.DataFrame({"a": [1]}), {"train": 1.0}),
         "DataFrame|Example"),
        ("nothing to split", lambda w: data.stratified_split([], {"train": 1.0}), "empty"),
        ("nothing to train on", lambda w: data.validation_split([e.replace(split="test") for e in many]),
         "no training"),
        ("a seed of a text", lambda w: data.stratified_split(many, {"train": 1.0}, seed="x"), "seed.*x"),
        ("a seed of -1", lambda w: data.stratified_split(many, {"train": 1.0}, seed=-1), "seed.*-1"),
        ("no contrast for a behavior", lambda w: data.with_contrasts(many, {"a": None}), "behavior 'b'"),
        ("contrasts of a list", lambda w: data.with_contrasts(many, [None]), r"contrasts.*\[None\]|list"),
        ("contrasts of pairs", lambda w: data.with_contrasts(many, {"a": ("x", "y"), "b": None}), "contrast.*'x', 'y'"),
        ("texts with contrasts", lambda w: data.with_contrasts(["a"], {}), "Example"),
        ("an unknown variant", lambda w: data.prompt_variant(many, "sys"), "kind.*sys"),
        ("no persona", lambda w: data.prompt_variant(many, "sys_pos", {}), "no persona"),
        ("nothing to balance", lambda w: data.balance_options(many), "option"),
        ("paper fractions", lambda w: data.paper_split(many, (0.5, 0.5)), "three shares"),
        ("a tolerance of 2", lambda w: data.check_balance(many, 2.0), "tolerance"),
        ("a tolerance of a text", lambda w: data.check_balance(many, "0.1"), "tolerance.*0.1"),
        ("no texts to inject", lambda w: data.injection_examples({}, ["Do it."]), "sources"),
        ("a share of 2", lambda w: data.injection_examples({"a": ["Rain fell."]}, ["Do it."], share=2.0), "share=2"),
        ("injections of one text", lambda w: data.injection_examples({"a": ["Rain fell."]}, "Do it."), "injections"),
        ("published fraction", lambda w: data.published_split(fraction=2.0), "fraction"),
        ("published rows of a text", lambda w: data.published_split("10"), "n.*10|rows"),
        ("per_image 3", lambda w: data.pope_questions({"a": ["dog"]}, "random", 3), "per_image"),
        ("an unknown pope split", lambda w: data.pope_questions({"a": ["dog"]}, "all"), "split.*all"),
        ("annotations of a text", lambda w: data.pope_questions({"a": "dog", "b": "cat"}, "random", 2),
         "'a'.*(one|list|text)|list"),
    ]  # fmt: skip
    right = [
        ("a byte order mark", jsonl("\ufeff" + _lines(prompt)), lambda e: e[0].prompt == "Hi"),
        ("Windows line ends", jsonl(_lines(prompt).replace("\n", "\r\n")), lambda e: e[0].prompt == "Hi"),
        ("no line end", jsonl(_lines(prompt).strip()), lambda e: len(e) == 1),
        ("a line separator in a text", jsonl(_lines({"prompt": "a\u2028b"})), lambda e: e[0].prompt == "a\u2028b"),
        ("one JSON list", jsonl(json.dumps([prompt])), lambda e: len(e) == 1),
        ("gzip", jsonl(gzip.compress(_lines(prompt).encode()), "t.jsonl.gz"), lambda e: len(e) == 1),
        ("the same prompt twice", jsonl(_lines(prompt, prompt)), lambda e: len({x.id for x in e}) == 2),
        ("a name twice in one object", jsonl('{"prompt": "a", "prompt": "b"}\n'), lambda e: len(e) == 1),
        ("a CSV with a byte order mark", xstest("\ufeff" + CSV), lambda e: e[0].id == "xstest/1"),
        ("a quoted line end in a CSV", xstest(CSV.replace("Hi", '"H\ni"')), lambda e: e[0].prompt == "H\ni"),
        ("columns in another order", xstest("focus,label,type,prompt,id\nx,safe,h,Hi,1\n"),
         lambda e: e[0].prompt == "Hi"),
        ("a set", mwe(ITEM), lambda e: e[0].contrast.positive == "(A)"),
    ]  # fmt: skip
    return refusals("files of data sets", cases) + answers("files of data sets", right)


def _metrics() -> list[Case]:
    texts = {"None": None, "NaN": NAN, "a number": 3, "bytes": b"Hi", "a list": ["Hi"]}
    of_text = {
        "is_refusal": metrics.is_refusal, "refusal_kind": metrics.refusal_kind,
        "defers_to_expert": metrics.defers_to_expert, "distinct_n": metrics.distinct_n,
        "repetition": metrics.repetition, "is_fluent": metrics.is_fluent, "final_number": metrics.final_number,
        "parse_yes_no": metrics.parse_yes_no, "mentioned_objects": metrics.mentioned_objects,
    }  # fmt: skip
    cases = [
        (f"{metric} of {name}", lambda w, f=f, x=x: f(x), f"text.*{'nan' if x != x else str(x).strip('[]')[:4]}")
        for metric, f in of_text.items()
        for name, x in texts.items()
    ]
    listed = {
        "KeywordJudge": metrics.KeywordJudge(), "share_identical": lambda t: metrics.share_identical(t, ["a"]),
        "exact_match": lambda t: metrics.exact_match(t, ["1"]),
        "pope_scores": lambda t: metrics.pope_scores(["yes"], t),
        "l2s_accuracy": lambda t: metrics.l2s_accuracy(["yes"], t),
    }  # fmt: skip
    wrong = {
        "None": None, "one text": "a", "nothing": [], "None in a list": [None], "NaN in a list": [NAN], "numbers": [3],
    }  # fmt: skip
    cases += [
        (f"{metric} of {name}", lambda w, f=f, x=x: f(x), "text|answer|None|number")
        for metric, f in listed.items()
        for name, x in wrong.items()
    ]
    numbers = {
        "nothing": [], "NaN": [1.0, NAN], "inf": [INF], "texts": ["a"], "None": None, "columns": [[1.0], [2.0]],
        "a number": 1.0, "None in a list": [None],
    }  # fmt: skip
    of_numbers = {
        "bootstrap_ci": metrics.bootstrap_ci, "paired_bootstrap": lambda v: metrics.paired_bootstrap(v, v),
        "detection_auc": lambda v: metrics.detection_auc(v, [0.0]),
        "rates_at": lambda v: metrics.rates_at(v, [0.0], threshold=0.5),
        "expected_unsafe": lambda v: metrics.expected_unsafe(v, 0.5),
        "unsafe_curve": lambda v: metrics.unsafe_curve(v, [0.5]),
    }  # fmt: skip
    cases += [
        (f"{metric} of {name}", lambda w, f=f, x=x: f(x), f"{metric}")
        for metric, f in of_numbers.items()
        for name, x in numbers.items()
    ]
    logits = torch.zeros(2, 4)
    cases += [
        ("distinct_n of n 0", lambda w: metrics.distinct_n("a b", 0), "n=0"),
        ("distinct_n of n 1.5", lambda w: metrics.distinct_n("a b", 1.5), "n=1.5"),
        ("an answer that is no text", lambda w: metrics.find_referral(3), "3"),
        ("reference answers without number", lambda w: metrics.exact_match(["1"], ["one"]), "no number"),
        ("too few reference answers", lambda w: metrics.exact_match(["1", "2"], ["1"]), "2 texts but 1"),
        ("an unknown gold label", lambda w: metrics.pope_scores(["Yes"], ["yes"]), "'Yes'"),
        ("gold None", lambda w: metrics.pope_scores([None], ["yes"]), "None"),
        ("gold of other length", lambda w: metrics.pope_scores(["yes", "no"], ["yes"]), "2 labels and 1"),
        ("gold labels of l2s_accuracy", lambda w: metrics.l2s_accuracy([""], ["yes"]), "''"),
        ("l2s_f1 in percent", lambda w: metrics.l2s_f1(80.0), "80"),
        ("l2s_f1 of NaN", lambda w: metrics.l2s_f1(NAN), "nan"),
        ("l2s_f1 of a text", lambda w: metrics.l2s_f1("0.8"), "0.8"),
        ("a statistic", lambda w: metrics.bootstrap_ci([1.0], statistic="mode"), "mode"),
        ("a level of 95", lambda w: metrics.bootstrap_ci([1.0, 2.0], level=95), "level=95"),
        ("a level of NaN", lambda w: metrics.bootstrap_ci([1.0, 2.0], level=NAN), "level=nan"),
        ("n_boot 0", lambda w: metrics.bootstrap_ci([1.0, 2.0], n_boot=0), "n_boot=0"),
        ("n_boot 2.5", lambda w: metrics.bootstrap_ci([1.0, 2.0], n_boot=2.5), "n_boot=2.5"),
        ("a level of a text", lambda w: metrics.bootstrap_ci([1.0, 2.0], level="0.95"), "level='?0.95"),
        ("a seed of a text", lambda w: metrics.bootstrap_ci([1.0, 2.0], seed="x"), "seed.*x"),
        ("a seed of -1", lambda w: metrics.bootstrap_ci([1.0, 2.0], seed=-1), "seed.*-1"),
        ("pairs of other length", lambda w: metrics.paired_bootstrap([1.0], [1.0, 2.0]), "1 and 2"),
        ("k above n", lambda w: metrics.share_interval(3, 2), "k=3"),
        ("k of 1.5", lambda w: metrics.share_interval(1.5, 2), "k=1.5"),
        ("n 0", lambda w: metrics.share_interval(0, 0), "n=0"),
        ("k of NaN", lambda w: metrics.share_interval(NAN, 2), "k=nan"),
        ("k of a text", lambda w: metrics.share_interval("1", 2), "k='?1"),
        ("neither fpr nor threshold", lambda w: metrics.rates_at([1.0], [0.0]), "fpr=None"),
        ("both", lambda w: metrics.rates_at([1.0], [0.0], fpr=0.1, threshold=0.5), "one of the two"),
        ("fpr of NaN", lambda w: metrics.rates_at([1.0], [0.0], fpr=NAN), "fpr=nan"),
        ("a threshold of NaN", lambda w: metrics.rates_at([1.0], [0.0], threshold=NAN), "threshold.*nan"),
        ("a report at fpr 2", lambda w: metrics.detection_report([1.0], [0.0], fpr=[2.0]), "fpr=2"),
        ("probabilities above 1", lambda w: metrics.expected_unsafe([2.0], 0.5), "probabilities"),
        ("a t of 1", lambda w: metrics.threshold_grid(1.0), "t=1"),
        ("a t of NaN", lambda w: metrics.threshold_grid(NAN), "t=nan"),
        ("a t of a text", lambda w: metrics.threshold_grid("0.5"), "t='?0.5"),
        ("an unknown grid", lambda w: metrics.threshold_grid(0.5, rule="fine"), "fine"),
        ("no captions", lambda w: metrics.chair({}, {}), "no captions"),
        ("an unknown image", lambda w: metrics.chair({"a": "A dog."}, {}), "not given"),
        ("objects of one text", lambda w: metrics.chair({"a": "A dog."}, {"a": "dog"}), "one string|one text"),
        ("an object outside the vocabulary", lambda w: metrics.chair({"a": "A dog."}, {"a": ["unicorn"]}), "unicorn"),
        ("a caption None", lambda w: metrics.chair({"a": None}, {"a": ["dog"]}), "text.*None|caption.*None"),
        ("captions of a list", lambda w: metrics.chair(["A dog."], {"a": ["dog"]}), "captions.*list|not given|A dog"),
        ("a name of two objects", lambda w: metrics.mentioned_objects("a", {"a": ["b"], "c": ["b"]}), "names both"),
        ("synonyms of one text", lambda w: metrics.mentioned_objects("a", {"a": "b"}), "one string|one text"),
        ("logits of one row", lambda w: metrics.yes_no_logits(logits[0], [0], [1]), r"\(4,\)"),
        ("no rows of logits", lambda w: metrics.yes_no_logits(logits[:0], [0], [1]), r"\(0, 4\)"),
        ("no yes", lambda w: metrics.yes_no_logits(logits, [], [1]), r"\[\]"),
        ("an id on both sides", lambda w: metrics.yes_no_logits(logits, [1], [1]), "both"),
        ("an id outside", lambda w: metrics.yes_no_logits(logits, [9], [1]), "outside"),
        ("a negative id", lambda w: metrics.yes_no_logits(logits, [-1], [1]), "outside"),
        ("an id of a text", lambda w: metrics.yes_no_logits(logits, ["yes"], [1]), "yes"),
        ("logits of NaN", lambda w: metrics.yes_no_logits(logits * NAN, [0], [1]), "NaN"),
        ("logits of a list", lambda w: metrics.yes_no_logits([[0.0, 1.0]], [0], [1]), "list"),
        ("logits None", lambda w: metrics.yes_no_logits(None, [0], [1]), "None"),
        ("impossible answers", lambda w: metrics.yes_no_logits(logits - INF, [0], [1]), "impossible"),
        ("a tokenizer None", lambda w: metrics.yes_no_ids(None), "tokenizer.*None"),
        ("perplexity of one text", lambda w: metrics.perplexity(w.model, ["a"], "b"), "text.*list|list.*text"),
        ("perplexity of None", lambda w: metrics.perplexity(w.model, ["a"], [None]), "text.*None|None.*text"),
        ("perplexity of too few", lambda w: metrics.perplexity(w.model, ["a", "b"], ["c"]), "2 prompts but 1"),
        ("a judge of prompts without them", lambda w: metrics.ClassifierJudge("x", show_prompt=True)(["a"]), "prompts"),
        ("a judge that is not there", lambda w: metrics.ClassifierJudge("./nowhere")(["a"]), "nowhere"),
    ]  # fmt: skip
    right = [
        ("is_refusal of nothing", lambda w: metrics.is_refusal(""), lambda r: r is False),
        ("distinct_n of nothing", lambda w: metrics.distinct_n(""), math.isnan),
        ("repetition of nothing", lambda w: metrics.repetition(""), lambda r: r == 0.0),
        ("is_fluent of nothing", lambda w: metrics.is_fluent(""), lambda r: r is False),
        ("final_number of nothing", lambda w: metrics.final_number("none here"), lambda r: r is None),
        ("parse_yes_no of nothing", lambda w: metrics.parse_yes_no(""), lambda r: r is None),
        ("KeywordJudge of nothing", lambda w: metrics.KeywordJudge()([""]), lambda r: r.tolist() == [0.0]),
        ("defers_to_expert of a long text", lambda w: metrics.defers_to_expert("a " * 100_000), lambda r: r is False),
        ("repetition of a long text", lambda w: metrics.repetition("a b " * 200), lambda r: r == 1.0),
        ("perplexity of an empty text", lambda w: metrics.perplexity(w.model, ["a"], [""]),
         lambda r: bool(np.isnan(r[0]))),
        ("bootstrap of one value", lambda w: metrics.bootstrap_ci([2.0]),
         lambda e: (e.low, e.value, e.high) == (2.0, 2.0, 2.0)),
        ("bootstrap of a tensor", lambda w: metrics.bootstrap_ci(torch.tensor([1.0, 1.0])), lambda e: e.value == 1.0),
        ("bootstrap of truth values", lambda w: metrics.bootstrap_ci([True, False]), lambda e: e.value == 0.5),
        ("auc of ties", lambda w: metrics.detection_auc([1.0], [1.0]), lambda r: r == 0.5),
        ("share of none", lambda w: metrics.share_interval(0, 5), lambda e: e.low == 0.0),
        ("chair of an empty caption", lambda w: metrics.chair({"a": ""}, {"a": []}), lambda s: s.chair_s == 0.0),
        ("a number with spaces and signs", lambda w: metrics.final_number("−$1,200.50%"),
         lambda r: str(r) == "-1200.50"),
    ]  # fmt: skip
    return refusals("metrics", cases) + answers("metrics", right)


def _plots() -> list[Case]:
    matplotlib.use("Agg")
    sweep = pd.DataFrame(
        {"layer": [0, 0, 1, 1], "alpha": [0.0, 1.0] * 2, "metric": "propensity", "value": [0.0, 1.0, 0.0, 2.0]}
    )
    bars = pd.DataFrame({"method": ["l2s"], "metric": ["refuse_harmful"], "value": [0.5], "low": [0.4], "high": [0.6]})
    curves = pd.DataFrame(
        {"behavior": ["a", "a"], "alpha": [0.0, 1.0], "mean": [0.0, 1.0], "low": [0.0, 1.0], "high": [0.0, 1.0]}
    )
    slope = pd.DataFrame({"behavior": ["a"] * 4, "example_id": list("1234"), "slope": [1.0, -1.0, 0.5, 0.2]})
    geometry = pd.DataFrame(
        {
            "layer": [0, 1], "a": "x", "b": "x", "kind": "within", "cosine": [0.1, 0.2], "low": [0.0, 0.1],
            "high": [0.2, 0.3], "shuffled": [0.0, 0.0],
        }
    )  # fmt: skip
    points = pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0], "label": ["a", "b"]})
    layers = pd.DataFrame(
        {
            "layer": [0, 1], "validation": [0.0, 1.0], "gap": [1.0, 0.0], "gap_low": [0.5, 0.0], "gap_high": [1.5, 0.0],
            "in_range": [False, True],
        }
    )  # fmt: skip
    drawn = {
        "sweep_heatmap": (plots.sweep_heatmap, sweep, "value"),
        "method_bars": (lambda f: plots.method_bars(f, ["refuse_harmful"]), bars, "value"),
        "propensity_lines": (plots.propensity_lines, curves, "mean"),
        "slope_distributions": (plots.slope_distributions, slope, "slope"),
        "geometry_lines": (plots.geometry_lines, geometry, "cosine"), "map_scatter": (plots.map_scatter, points, "x"),
        "layer_range_lines": (plots.layer_range_lines, layers, "validation"),
    }  # fmt: skip
    cases, right = [], []
    for name, (draw, frame, column) in drawn.items():
        wrong = {
            "an empty frame": (frame.iloc[:0], name), "no frame": (None, f"{name}.*None|frame.*None"),
            "a dict": (frame.to_dict("list"), f"{name}.*dict|frame.*dict"),
            "a missing column": (frame.drop(columns=column), f"{name}.*{column}"),
            "NaN only": (frame.assign(**{column: NAN}), f"{name}.*(NaN|nan|finite)"),
            "texts": (frame.assign(**{column: "much"}), f"{name}.*(much|number)"),
            "inf": (frame.assign(**{column: INF}), f"{name}.*(NaN|inf|finite)"),
        }  # fmt: skip
        cases += [(f"{name} of {what}", lambda w, f=draw, x=x: _drawn(f, x), says) for what, (x, says) in wrong.items()]
        right += [(f"{name} of a frame", lambda w, f=draw, x=frame: _drawn(f, x), bool)]
    square = pd.DataFrame(np.eye(2))
    for name, draw in (("cosine_heatmap", plots.cosine_heatmap), ("layer_heatmap", plots.layer_heatmap)):
        wrong = {
            "an empty frame": (square.iloc[:0, :0], "heat map"), "NaN": (square * NAN, "heat map"),
            "2": (square * 2, "heat map"), "texts": (square.astype(str) + "x", "heat map"),
            "None": (None, "heat map.*None|None.*heat map"),
        }  # fmt: skip
        cases += [(f"{name} of {what}", lambda w, f=draw, x=x: _drawn(f, x), says) for what, (x, says) in wrong.items()]
        right += [(f"{name} of a frame", lambda w, f=draw: _drawn(f, square), bool)]
    cases += [
        ("an unknown metric", lambda w: _drawn(lambda f: plots.method_bars(f, ["fluency"]), bars), "fluency"),
        ("no metrics", lambda w: _drawn(lambda f: plots.method_bars(f, []), bars), "metrics"),
        ("metrics of one text", lambda w: _drawn(lambda f: plots.method_bars(f, "refuse_harmful"), bars),
         "metrics.*refuse_harmful"),
        ("an unknown metric of a sweep", lambda w: _drawn(lambda f: plots.sweep_heatmap(f, metric="x"), sweep), "'x'"),
        ("several methods", lambda w: _drawn(plots.sweep_heatmap, sweep.assign(method=["a", "b"] * 2)), "method"),
        ("selected layers that are not there",
         lambda w: _drawn(lambda f: plots.sweep_heatmap(f, layers=[7], alpha=1.0), sweep), "7"),
        ("several rows per alpha", lambda w: _drawn(plots.propensity_lines, pd.concat([curves, curves])),
         "one row for each"),
        ("an unknown highlight", lambda w: _drawn(lambda f: plots.propensity_lines(f, highlight=["z"]), curves), "'z'"),
        ("an unknown column", lambda w: _drawn(lambda f: plots.propensity_lines(f, layer=3), curves), "layer"),
        ("an unknown order", lambda w: _drawn(lambda f: plots.slope_distributions(f, order=["z"]), slope), "'z'"),
        ("an example twice", lambda w: _drawn(plots.slope_distributions, pd.concat([slope, slope])), "twice"),
        ("no summary", lambda w: plots.read_summary(w.folder), "does not exist"),
        ("a broken summary", lambda w: plots.read_summary(w.file("summary.json", "{").parent), "JSON"),
        ("a summary of a list", lambda w: plots.summary_frame(plots.read_summary(w.file("summary.json", "[1]").parent)),
         "list|object"),
        ("a summary without estimates", lambda w: plots.summary_frame({"seed": 0}), "no 'method.metric'"),
        ("an estimate of a text", lambda w: plots.summary_frame({"l2s.x": {"value": "a", "low": 0, "high": 1}}),
         "l2s.x"),
        ("an estimate of NaN",
         lambda w: plots.summary_frame({"l2s.refuse_harmful": {"value": NAN, "low": NAN, "high": NAN, "n": 3}}),
         "nan|NaN|l2s"),
        ("three columns", lambda w: plots.width(3), "3"),
    ]  # fmt: skip
    return refusals("plots", cases) + answers("plots", right)


def _drawn(draw, frame):
    """Whether something is drawn, the figure closed again."""
    try:
        return draw(frame) is not None
    finally:
        matplotlib.pyplot.close("all")


CASES = [*_readers(), *_metrics(), *_plots()]
