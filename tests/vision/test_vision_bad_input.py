"""Images of every kind, and prompts and images that are refused."""

import io
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_models import CHATS, OTHER, SQUARE, TALL, WIDE, example, families, noise, vlm
from PIL import Image

from steerlab import Example, capture, generate, load
from steerlab._support.images import image_hash, open_image
from steerlab.data.example import data_hash
from steerlab.errors import DataError, EncodingError
from steerlab.models import beam_images, encoding, vision
from steerlab.testing import tiny_lm, tiny_processor, tiny_vlm

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


# --- kinds of images -----------------------------------------------------------------------------------------


def test_gray_of_8_and_16_bits_opens_as_the_same_ramp_and_unknown_ranges_are_refused(tmp_path: Path) -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as read:
        assert deep.mode == read.mode == "I;16", "the premise"
        for image in (Image.fromarray(RAMP), deep, read, str(tmp_path / "deep.png")):
            assert (np.asarray(open_image(image)) == np.stack([RAMP] * 3, -1)).all()
    for mode in ("I", "F"):
        with pytest.raises(DataError, match=f"unknown range .mode {mode}.: convert it"):
            open_image(Image.fromarray(RAMP).convert(mode))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "P"])
def test_transparent_pixels_are_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (10, 10, 10, 255))
    image.paste((200, 0, 0, 0), (0, 0, 2, 2))
    if mode == "P":  # a palette whose color 0 is transparent
        image = Image.new("P", (4, 2), 1)
        image.putpalette([0, 0, 255, 10, 10, 10])
        image.paste(0, (0, 0, 2, 2))
        image.save(tmp_path / "palette.png", transparency=0)
    pixels = np.asarray(open_image(tmp_path / "palette.png" if mode == "P" else image.convert(mode)))
    assert (pixels[:, :2] == 255).all() and (pixels[:, 2:] == 10).all()


def test_cmyk_one_bit_and_rotated_photos(tmp_path: Path) -> None:
    assert open_image(Image.new("CMYK", (3, 3), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    assert open_image(Image.new("1", (3, 3), 1)).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated
    WIDE.save(tmp_path / "rotated.jpg", exif=exif)
    assert open_image(tmp_path / "rotated.jpg").size == (WIDE.height, WIDE.width)


@pytest.mark.parametrize("family", ["llava", "smolvlm"])
def test_file_and_open_image_give_the_same_states_until_the_file_changes(family: str, tmp_path: Path) -> None:
    model, place = vlm(family), tmp_path / "wide.png"
    WIDE.save(place)
    ways = [WIDE, WIDE.convert("RGBA"), place, str(place)]
    rows = [Example("What is this?", id=str(i), images=(way,)) for i, way in enumerate(ways)]
    found = capture(model, rows, layers=-1, progress=False, batch_size=1).values
    assert (found == found[0]).all()
    noise(60, 20, 9).save(place)
    assert not torch.equal(capture(model, rows[3:], layers=-1, progress=False).values[0], found[0])


def test_image_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "_KEYS", 3)
    processor = vision.Vision(vlm("llava").vision.processor, vlm("llava").hf.config)
    for seed in range(8):
        processor.expand((noise(9, 9, seed),))
    assert len(processor._keys) <= 3


# --- files that are no images --------------------------------------------------------------------------------


def file_of(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels, and has one."""
    png = file_of(Image.new("RGB", (1, 1)), "png")
    size = png[12:16] + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + size + struct.pack(">I", zlib.crc32(size)) + png[33:]


PHOTO = file_of(WIDE, "jpeg")
FILES: dict[str, tuple[bytes | None, str]] = {
    "": (None, "cannot be read"),  # the folder
    "missing.png": (None, "does not exist"),
    "photo.jpg": (PHOTO[: len(PHOTO) // 2], "cannot be read"),
    "empty.png": (b"", "broken, empty or no image"),
    "text.jpg": (b"this is no image at all", "broken, empty or no image"),
    "cut.png": (header(30, 30), "broken, empty or no image"),
    "huge.png": (header(60_000, 50_000), "more than 100,000,000 pixels .*3000000000.*: scale it down"),
    "large.png": (header(10_001, 10_000), "10001 x 10000 pixels, more than 100,000,000: scale it down"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_named_and_refused_before_any_forward(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, message = FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    model = vlm("llava")
    monkeypatch.setattr(model.engine, "capture_states", lambda *_: pytest.fail("a forward"))
    for run in (capture, generate):
        with pytest.raises(DataError, match=message) as caught:
            run(model, [Example("Hi", id="a", images=(str(tmp_path / name),))])
        assert name in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        image_hash(tmp_path / "nothing.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # of whoever opens it
def test_unusable_open_image_is_refused() -> None:
    model, closed = vlm("llava"), noise(4, 4, 0)
    closed.close()
    for image, message in (
        (closed, "the image cannot be read"),
        (Image.open(io.BytesIO(header(30, 30))), "the image cannot be read"),
        (Image.open(io.BytesIO(header(10_001, 10_000))), "more than 100,000,000: scale it down"),
        (Image.new("RGB", (0, 5)), "the image has no pixels"),
    ):
        row = Example("Hi", id="a", images=(image,))
        for look in (
            partial(open_image, image), partial(image_hash, image), partial(data_hash, [row]),
            partial(model.encode, "Hi", images=[image]), partial(capture, model, [row], progress=False),
        ):  # fmt: skip
            with pytest.raises(DataError, match=message):
                look()


# --- prompts and images that do not fit ----------------------------------------------------------------------


@families
def test_plain_prompt_needs_one_placeholder_per_image(family: str) -> None:
    model = tiny_vlm(family, backend="hooks")
    model.chat = False  # prompts are taken as they are
    mark = model.vision.placeholder
    assert model.encode(f"{mark} What is this?", images=[WIDE]).kind("image")
    for text, images, counts in (
        ("What is this?", [WIDE], "0 image tokens .* 1 images"),
        (f"{mark} and {mark}", [WIDE], "2 image tokens .* 1 images"),
        (f"{mark} and", [WIDE, TALL], "1 image tokens .* 2 images"),
        (f"{mark} and", [], "1 image tokens .* 0 images"),
    ):
        with pytest.raises(EncodingError, match=counts):
            model.encode(text, images=images)


@pytest.mark.parametrize("family", CHATS)
def test_image_tokens_in_the_text_are_refused(family: str) -> None:
    """Written by a user, or in an answer: features would go to the wrong tokens."""
    model = vlm(family)
    for text, answer in ((f"What is {model.vision.token}?", None), ("What is this?", f"It is {model.vision.token}")):
        with pytest.raises(EncodingError, match="image tokens"):
            model.encode(text, answer=answer)
    if family == "gemma3":  # its prompts mark a image by another token
        with pytest.raises(EncodingError, match=r"1 image tokens .* besides those of its 1 images"):
            model.encode(f"What is {model.vision.token}?", images=[WIDE])


@families
def test_too_many_and_dropped_image_tokens_are_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = vlm(family), encoding._tokenize

    def cut(*given: Any, **options: Any) -> Any:
        ids, places = whole(*given, **options)
        n = ids.index(model.vision.token_id) + 4
        return ids[:n], places[:n]

    row = example(family, "What is this?", [WIDE, TALL, OTHER, SQUARE] * 20)
    with pytest.raises(EncodingError, match="the model's context holds 512"):
        model.encode(row.prompt, images=row.images)
    row = example(family, "What is this?", [WIDE])
    monkeypatch.setattr(encoding, "_tokenize", cut)
    with pytest.raises(EncodingError, match=r"dropped \d+ of the \d+ image tokens"):
        model.encode(row.prompt, images=row.images)


@families
def test_truncating_processor_is_refused(family: str) -> None:
    """Its tokenizer was saved with truncation; a cut after the prompt changes nothing."""
    processor = tiny_processor(family)
    processor.tokenizer.init_kwargs |= {"truncation": True, "max_length": 6}
    model = load(vlm(family).hf, processor=processor, backend="hooks", check=False)
    row = example(family, "What is this?", [WIDE])
    for look in (
        lambda: model.encode(row.prompt, images=row.images),
        lambda: generate(model, [row]),
        lambda: load(vlm(family).hf, processor=processor, backend="hooks"),
    ):
        with pytest.raises(EncodingError, match=r"It truncates texts .truncation=True, max_length=6., and the tokens"):
            look()
    model.vision.processor.tokenizer.init_kwargs["max_length"] = 300
    assert model.encode(row.prompt, images=row.images).ids == vlm(family).encode(row.prompt, images=row.images).ids


def test_images_for_a_text_model_or_without_a_list_are_refused() -> None:
    with pytest.raises(EncodingError, match="comes with 1 images, but this model reads text only"):
        capture(tiny_lm(backend="hooks"), [Example("Hi", id="a", images=(WIDE,))], progress=False)
    with pytest.raises(EncodingError, match=r"are 'photo\.jpg' \(str\): give a list"):
        vlm("llava").encode("Hi", images="photo.jpg")


def test_processor_that_refuses_or_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_vlm("llava", backend="hooks")
    processor = model.vision.processor
    monkeypatch.setattr(type(processor), "__call__", lambda *_, **__: (_ for _ in ()).throw(ValueError("too small")))
    with pytest.raises(EncodingError, match="LlavaProcessor refuses 1 images: too small"):
        model.encode("Hi", images=[noise(3, 3, 1)])
    monkeypatch.setattr(type(processor), "__call__", lambda self, text, **_: self.tokenizer("nothing left of it"))
    with pytest.raises(EncodingError, match="LlavaProcessor rewrote"):
        model.encode("Hi", images=[noise(3, 3, 2)])


# --- copies of rows in older transformers ----------------------------------------------------------------------


@families
def test_copies_that_would_get_wrong_images_are_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vlm(family)
    two, one = example(family, "Which?", (WIDE, TALL), "both"), example(family, "This?", (WIDE,))
    monkeypatch.setattr(beam_images, "_counts_tokens", lambda _: False)
    monkeypatch.setattr(model.engine, "generate", lambda *_, **__: (_ for _ in ()).throw(ZeroDivisionError))
    whole_rows = family in ("idefics3", "smolvlm")
    for options in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
        with pytest.raises(ZeroDivisionError if whole_rows else EncodingError, match=None if whole_rows else "'both'"):
            generate(model, [one, two] if "qwen" not in family else [two], **options)
        with pytest.raises(EncodingError if "qwen" in family else ZeroDivisionError):
            generate(model, [one], **options)  # Qwen keeps its patches in one flat row
    with pytest.raises(ZeroDivisionError):
        generate(model, [two])
