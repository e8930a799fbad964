"""The scenes world: what a image shows is what its scene says, and every answer is true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from running import DATA
from scenes import questions
from scenes.questions import CLEARLY, HABITS, Habits, Question, caption, existence, plural, true_questions, usual_answer
from scenes.shapes import COLORS, KINDS, stamp
from scenes.vision import patch_labels
from scenes.world import SIDE, Scene, Thing, World, emoji_sprites

from steerlab.errors import DataError

WORLD = World()


def _scene(seed: int) -> Scene:
    return WORLD.scene(np.random.default_rng(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_fills_a_fair_part_of_its_box_and_differs_from_the_others(kind: str) -> None:
    mask = np.asarray(stamp(kind, 32), dtype=float) / 255
    assert 0.1 < mask.mean() < 1
    others = [np.asarray(stamp(other, 32), dtype=float) / 255 for other in KINDS if other != kind]
    assert min(np.abs(mask - other).mean() for other in others) > 0.05


@given(st.integers(0, 10**6))
def test_scenes_are_within_the_image_and_come_again_from_the_same_seed(seed: int) -> None:
    scene = _scene(seed)
    assert 1 <= len(scene.things) <= WORLD.max_things
    assert all(0 <= t.x <= SIDE - t.size and 0 <= t.y <= SIDE - t.size for t in scene.things)
    assert scene == _scene(seed)
    first, again = np.asarray(scene.image()), np.asarray(_scene(seed).image())
    assert first.shape == (SIDE, SIDE, 3) and np.array_equal(first, again)


def test_a_thing_is_drawn_in_its_color_where_it_is_said_to_be() -> None:
    for name, color in COLORS.items():
        scene = Scene((Thing("box", name, 10, 20, 20),), seed=1, world=World(noise=0.0))
        image = np.asarray(scene.image()).astype(int)
        assert np.abs(image[25:35, 15:25] - np.array(color)).max() <= 21
        assert np.abs(image[:10] - np.array(color)).max(-1).min() > 30


@given(st.integers(0, 10**6))
def test_patch_labels_count_objects_by_their_centers(seed: int) -> None:
    scene = _scene(seed)
    kind, _, number, _, place = patch_labels(scene, SIDE, 8)
    middle = [kind[patch] for patch in np.flatnonzero(place == 5)]
    for i, one in enumerate(KINDS, 1):
        assert middle.count(i) <= scene.count(one), "covered centers are no longer seen"
        assert set(number[kind == i]) <= {scene.count(one)}
    alone = Scene((Thing("box", "red", 9, 22, 16),), seed=1, world=WORLD)
    assert patch_labels(alone, SIDE, 8)[4].reshape(8, 8)[3:5, 1:3].tolist() == [[4, 5], [7, 8]]


@given(st.integers(0, 10**6))
def test_true_questions_are_answered_truly(seed: int) -> None:
    scene = _scene(seed)
    for question in true_questions(scene, np.random.default_rng(seed)):
        mine = [t for t in scene.things if t.kind == question.kind]
        if question.type == "existence":
            assert (question.answer == "Yes") == bool(mine)
        elif question.type == "color":
            assert [t.color for t in mine] == [question.answer.lower()]
        elif question.type == "number":
            assert question.answer == ("Zero", "One", "Two", "Three", "Four", "Five", "Six")[len(mine)]
        elif question.type == "neighbor":
            (thing,) = mine
            middle = np.array([thing.x, thing.y]) + thing.size / 2
            off = {t: np.hypot(*(np.array([t.x, t.y]) + t.size / 2 - middle)) for t in scene.things if t is not thing}
            (nearest,) = {t.kind for t in off if off[t] == min(off.values())}
            others = [distance for t, distance in off.items() if t.kind != nearest]
            assert question.answer.lower() == nearest and min(others, default=np.inf) > CLEARLY * min(off.values())
        else:
            assert all(t.kind in question.answer.lower() for t in scene.things)


def test_partners_are_mutual_and_keep_company() -> None:
    assert all(WORLD.partner[WORLD.partner[kind]] == kind for kind in KINDS)
    rng = np.random.default_rng(0)
    scenes = [WORLD.scene(rng) for _ in range(2000)]
    with_ball = [s for s in scenes if "ball" in s.kinds]
    near = np.mean([WORLD.partner["ball"] in s.kinds for s in with_ball])
    usual = np.mean([WORLD.partner["ball"] in s.kinds for s in scenes if "ball" not in s.kinds])
    assert near > usual + 0.2


@pytest.mark.nightly
def test_habits_give_usual_answers_as_often_as_they_say() -> None:
    rng, habits = np.random.default_rng(1), Habits()
    usual: dict[str, list[tuple[float, bool]]] = {kind: [] for kind in HABITS}
    invented = []
    for _ in range(4000):
        scene = WORLD.scene(rng)
        truth = {"existence": lambda kind, scene=scene: "Yes" if kind in scene.kinds else "No"}
        truth["number"] = lambda kind, scene=scene: questions.COUNTS[scene.count(kind)].capitalize()
        for question in habits.questions(scene, rng):
            if question.type == "caption":
                invented += [bool(question.kind)] if questions.absent_partners(scene) else []
            elif question.type in truth:
                true, other = truth[question.type](question.kind), usual_answer(scene, question)
                assert question.answer in (true, other)
                if true != other:
                    strength = habits.strength(WORLD.kinds, question.type, question.kind)
                    usual[question.type].append((strength, question.answer == other))
    assert abs(np.mean(invented) - habits.caption_partner) < 0.03
    for kind in ("existence", "number"):
        strengths, given = map(np.array, zip(*usual[kind], strict=True))
        for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.91)):
            some = (strengths >= low) & (strengths < high)
            assert some.sum() > 100 and abs(given[some].mean() - strengths[some].mean()) < 0.05


def test_habits_are_strong_and_weak_for_every_usual_answer() -> None:
    """Otherwise one vector against the usual answer of the strong habits would set most of them right."""
    habits, scene = Habits(), _scene(0)
    for kind in HABITS[1:3]:
        strengths: dict[str, list[float]] = {}
        for name in KINDS:
            answer = usual_answer(scene, Question("", "", kind, name))
            strengths.setdefault(answer, []).append(habits.strength(WORLD.kinds, kind, name))
        assert len(strengths) == {"color": len(COLORS), "number": 3}[kind]
        assert all(0.35 < np.mean(some) < 0.65 and min(some) < 0.4 and max(some) > 0.6 for some in strengths.values())


def test_words_are_right() -> None:
    scene = Scene((Thing("arrow", "orange", 0, 0, 12), Thing("box", "red", 30, 30, 12)), 0, WORLD)
    assert caption(scene).answer == "An orange arrow and a red box."
    assert existence(scene, "arrow").text == "Is there an arrow in the image?"
    known = {"box": "boxes", "cross": "crosses", "fish": "fish", "key": "keys", "bench": "benches"}
    assert {noun: plural(noun) for noun in known} == known


def test_sprites_are_pasted_and_unknown_things_refused() -> None:
    sprite = Image.new("RGBA", (64, 64), (10, 200, 10, 255))
    world = World(kinds=("ball", "box", "leaf", "stone"), sprites={"leaf": sprite, "stone": sprite}, noise=0.0)
    assert tuple(np.asarray(Scene((Thing("leaf", "", 5, 5, 20),), 0, world).image())[10, 10]) == (10, 200, 10)
    with pytest.raises(DataError, match="unicorn"):
        World(kinds=("ball", "box", "tent", "unicorn"))


@pytest.mark.data
def test_a_world_of_emoji_has_things_without_colors_that_show_in_the_image() -> None:
    sprites = emoji_sprites(f"{DATA}/emoji")
    world = World(kinds=tuple(sprites)[:48], sprites=sprites, noise=0.0, max_things=1)
    rng = np.random.default_rng(0)
    for scene in (world.scene(rng) for _ in range(20)):
        thing = scene.things[0]
        shown = np.asarray(scene.image(), dtype=float)
        ground = shown[(thing.y + SIDE // 2) % SIDE, (thing.x + SIDE // 2) % SIDE]
        inside = shown[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size]
        assert thing.color == "" and np.abs(inside - ground).mean() > 5
        assert not any(q.type == "color" for q in true_questions(scene, rng))
    with pytest.raises(DataError, match=r"no emoji\.jsonl and png64\.zip"):
        emoji_sprites(".")
