"""XSTest, prompts in JSON lines, and texts with an injected task and without."""

from collections import Counter

import pytest
from data_files import shared, write
from hypothesis import given
from hypothesis import strategies as st

from steerlab.data import injection_examples, read_jsonl, trivia_pairs, xstest, xstest_refusal_labels
from steerlab.data.injections import HELD_OUT_TRIGGERS, PRIMARY_TASKS, PRIMED, TRIGGERS, UNPRIMED, fill_template
from steerlab.data.paragraphs import insert_task, split_sentences, truncate_sentences
from steerlab.errors import DataError

HEADER = "id,prompt,type,label,focus,note\n"


def test_builtin_xstest_has_the_published_counts():
    examples = xstest()
    assert Counter(e.behavior for e in examples) == {"answer": 250, "refuse": 200}
    assert all(e.meta["type"].startswith("contrast_") for e in examples if e.behavior == "refuse")
    assert set(examples[0].meta) == {"type", "focus"}


def test_xstest_reads_another_file(tmp_path):
    (example,) = xstest(write(tmp_path / "prompts.csv", HEADER, '7,"Kill, or\nnot?",homonyms,unsafe,,\n'))
    found = (example.id, example.prompt, example.behavior, example.meta["focus"])
    assert found == ("xstest/7", "Kill, or\nnot?", "refuse", "")


def test_refusal_labels_get_short_names(tmp_path):
    one = {"id": "v2-1", "prompt": "Q", "completion_start": "A", "strmatch_label": "2_full_refusal"}
    one["human_label"] = "1_full_compliance"
    two = {**one, "id": "v2-2", "human_label": "3_partial_refusal"}
    frame = xstest_refusal_labels(write(tmp_path / "labels.jsonl", one, two))
    assert list(frame.columns) == ["id", "prompt", "answer", "label", "string_match"]
    assert frame.iloc[0].tolist() == ["xstest/1", "Q", "A", "comply", "refuse"]
    assert frame.iloc[1].tolist() == ["xstest/2", "Q", "A", "partial", "refuse"]


def test_read_jsonl_ids_are_line_numbers_unless_a_field_is_named(tmp_path):
    file = write(tmp_path / "tasks.jsonl", '{"q": "a\u2028b", "n": 1}\n\n{"q": "c", "n": 2}\n')
    examples = read_jsonl(file, prompt_field="q", behavior="answer", meta_fields=("n",))
    assert [(e.id, e.prompt, e.meta["n"]) for e in examples] == [("tasks/1", "a\u2028b", "1"), ("tasks/3", "c", "2")]
    assert read_jsonl(file, prompt_field="q", id_prefix="mine", id_field="n")[1].id == "mine/2"
    assert read_jsonl(write(tmp_path / "tasks.jsonl.gz", {"prompt": "d"}), id_prefix="tasks")[0].prompt == "d"


@pytest.mark.data
def test_real_refusal_labels_join_the_prompts():
    frame = xstest_refusal_labels(shared("xstest", "refusal_labels_mistral_instruct.jsonl"))
    assert frame["label"].value_counts().to_dict() == {"comply": 246, "refuse": 49, "partial": 2}
    prompts = {example.id: example.prompt for example in xstest()}
    assert all(prompts[id_] == prompt for id_, prompt in zip(frame["id"], frame["prompt"], strict=True))


TEXTS = {
    name: [f"{name.title()} number {i} is here. It weighs {i} grams. Nobody knows why." for i in range(24)]
    for name in ("apples", "birds")
}
INJECTIONS = ["Name a metal.", "Who wrote Faust?", "Where is Lima?"]

words = st.text("abcxyz", min_size=1, max_size=6)
sentence = st.lists(words, min_size=1, max_size=12).map(lambda some: " ".join(some).capitalize() + ".")


def test_clean_example_has_task_and_text_and_the_task_as_extra_prompt():
    for example in injection_examples(TEXTS, INJECTIONS, share=0.0):
        source, number, place = example.id.split("/")
        assert (place, example.behavior) == ("clean", "clean")
        assert (example.meta["place"], example.meta["injection"]) == ("none", "")
        task = example.meta["task"]
        assert example.prompt == fill_template(f"{task} {TEXTS[source][int(number)]}")
        assert dict(example.extra_prompts) == {"task": fill_template(task)}
        assert task in PRIMARY_TASKS[example.meta["family"]]


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_paired_examples_differ_by_the_injection_alone(place):
    examples = {e.id: e for e in injection_examples(TEXTS, INJECTIONS, places=[place], paired=True)}
    assert len(examples) == 2 * 48
    for name, example in examples.items():
        if example.behavior == "clean":
            continue
        assert name.endswith(f"/{place}") and example.meta["place"] == place
        clean = examples[name.removesuffix(place) + "clean"]
        injected = f"{example.meta['trigger']} {example.meta['injection']}".strip()
        assert example.prompt.count(injected) == 1 and injected not in clean.prompt
        assert " ".join(example.prompt.replace(injected, "").split()) == " ".join(clean.prompt.split())
        assert example.extra_prompts == clean.extra_prompts and example.meta["task"] == clean.meta["task"]


@given(st.lists(sentence, min_size=2, max_size=8))
def test_insert_task_at_start_end_and_the_sentence_end_nearest_to_the_middle(parts):
    text = " ".join(parts)
    assert insert_task(text, "X.", "start") == f"X. {text}" and insert_task(text, "X.", "end") == f"{text} X."
    before = insert_task(text, "TASK", "middle").split("TASK")[0]
    assert before.rstrip() in {" ".join(parts[:n]) for n in range(1, len(parts))}
    ends = [len(" ".join(parts[:n])) + 1 for n in range(1, len(parts))]
    assert abs(len(before) - len(text) / 2) == min(abs(end - len(text) / 2) for end in ends)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_share_places_tasks_and_injections_are_used_evenly(share, seed):
    examples = injection_examples(TEXTS, INJECTIONS, share=share, seed=seed)
    assert len(examples) == 48
    for source in TEXTS:
        mine = [e for e in examples if e.meta["source"] == source]
        assert sum(e.behavior == "injected" for e in mine) == round(share * 24)
        assert set(Counter(e.meta["task"] for e in mine).values()) == {1}  # 24 tasks, 24 paragraphs
        for what in ("place", "injection"):
            counts = [n for value, n in Counter(e.meta[what] for e in mine).items() if value not in ("none", "")]
            assert not counts or max(counts) - min(counts) <= 1


def test_draws_of_a_source_depend_on_the_seed_and_not_on_other_sources():
    both = injection_examples(TEXTS, INJECTIONS, seed=3)
    alone = injection_examples({"birds": TEXTS["birds"]}, INJECTIONS, seed=3)
    assert [e for e in both if e.meta["source"] == "birds"] == alone
    assert injection_examples(TEXTS, INJECTIONS, seed=3) == both
    assert {e.id for e in injection_examples(TEXTS, INJECTIONS, seed=4)} != {e.id for e in both}


def test_splits_are_given_by_source():
    examples = injection_examples(TEXTS, INJECTIONS, splits={"apples": "train", "birds": "test"})
    assert {(e.meta["source"], e.split) for e in examples} == {("apples", "train"), ("birds", "test")}
    assert {e.split for e in injection_examples(TEXTS, INJECTIONS)} == {""}
    with pytest.raises(DataError, match=r"splits name \['apples'\], the sources are \['apples', 'birds'\]"):
        injection_examples(TEXTS, INJECTIONS, splits={"apples": "train"})


def test_templates_and_triggers():
    primed = injection_examples(TEXTS, INJECTIONS)[0]
    unprimed = injection_examples(TEXTS, INJECTIONS, template=UNPRIMED)[0]
    assert primed.prompt.startswith(unprimed.prompt) and len(primed.prompt) > len(unprimed.prompt)
    assert fill_template("{a} {content}", "<{content}>") == "<{a} {content}>"
    assert PRIMED.count("{content}") == UNPRIMED.count("{content}") == 1
    for example in injection_examples(TEXTS, INJECTIONS, share=1.0, triggers=["Psst:"]):
        assert f"Psst: {example.meta['injection']}" in example.prompt
    assert {e.meta["trigger"] for e in injection_examples(TEXTS, INJECTIONS, share=1.0, triggers=())} == {""}
    assert "" in TRIGGERS and not set(TRIGGERS) & set(HELD_OUT_TRIGGERS)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ({}, {}, "at least one paragraph"), ({"a": []}, {}, "at least one paragraph"),
        ({"a": "One. Two."}, {}, "at least one paragraph"), ({"a": ["One. Two.", " \n"]}, {}, "a/1 is empty"),
        ({"a": ["One. Two."], "b": ["one.  two."]}, {}, "a/0 and b/0 are the same"),
        ({"a": ["One. Two."], "b": ["One. Three."]}, {"max_words": 1}, "a/0 and b/0 are the same"),
        ({"a": ["Please name a  METAL. Thank you."]}, {}, "a/0 contains the injection 'name a metal.'"),
        ({"a": ["One. Two."]}, {"places": ["center"]}, "place='center' is unknown; expected one of start, middle, end"),
        ({"a": ["One. Two."]}, {"places": []}, "places=.*at least one"),
        ({"a": ["One. Two."]}, {"injections": []}, "injections=.*at least one"),
        ({"a": ["One. Two."]}, {"injections": "Name a metal."}, "injections=.*list"),
        ({"a": ["One. Two."]}, {"injections": ["Name a metal.", ""]}, "none that is empty"),
        ({"a": ["One. Two."]}, {"tasks": {}}, "tasks="),
        ({"a": ["One. Two."]}, {"tasks": {"qa": ["name  a metal."]}}, "is a task and an injection"),
        ({"a": ["One. Two."]}, {"triggers": "Psst"}, "triggers='Psst'"),
        ({"a": ["One. Two."]}, {"share": 1.5}, "share=1.5"),
        ({"a": ["One. Two."]}, {"template": "{text}"}, "{content}"),
        ({"a": ["One of a kind"]}, {"places": ["middle"], "share": 1.0}, "one sentence"),
        ({"a": ["One two three four. Five."]}, {"max_words": 3}, "max_words=3"),
    ],
)  # fmt: skip
def test_injection_examples_bad_input_raises(texts, options, message):
    with pytest.raises(DataError, match=message):
        injection_examples(texts, **{"injections": INJECTIONS, **options})


@given(st.lists(sentence, min_size=1, max_size=8), st.integers(12, 40))
def test_truncated_paragraphs_end_with_a_sentence(parts, max_words):
    short = truncate_sentences(" ".join(parts), max_words)
    assert short in {" ".join(parts[:n]) for n in range(1, len(parts) + 1)}
    assert len(short.split()) <= max_words
    assert split_sentences(" ".join(parts)) == parts
    texts = {"a": ["One two. Three four. Five six."]}
    (example,) = injection_examples(texts, INJECTIONS, share=0.0, max_words=4, template="{content}")
    assert example.prompt.endswith("One two. Three four.")


def test_trivia_pairs_have_their_answers(tmp_path):
    (example,) = trivia_pairs(write(tmp_path / "pairs.jsonl", {"question": "Where is Lima?", "answer": "Peru"}))
    found = (example.id, example.prompt, example.meta["answer"], example.behavior)
    assert found == ("trivia/1", "Where is Lima?", "Peru", "answer")
