"""What all tests share: tiny models, each built once."""

import os
import re
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from steerlab.cli import main
from steerlab.models.model import Model
from steerlab.testing import FAMILIES, VLM_FAMILIES, tiny_lm

# `make test` looks at a few examples of each property, `make nightly` at many; a busy machine is no failure
settings.register_profile("test", deadline=None, max_examples=25)
settings.register_profile("nightly", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))
# a shell that runs the tests in the background lets them ignore Ctrl-C, and some tests press it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# by day these tests, the longest of those that go through all families, see some kinds of attention, of positions
# and of image tokens, and of NDIF's workers the one in the server's process; `make nightly` sees all
BY_DAY = {"llama", "gpt2", "gemma2", "llava", "qwen2_5_vl"}
LONGEST = {
    "test_a_batch_that_exceeds_the_servers_memory_needs_a_smaller_one",
    "test_a_capture_continues_after_its_worker_was_killed",
    "test_a_job_over_the_time_limit_is_ended_and_the_next_one_runs", "test_a_missing_model_has_a_suggestion",
    "test_a_running_job_without_messages_is_given_up", "test_alpha_v_is_added_at_the_positions_and_nowhere_else",
    "test_alpha_zero_is_bit_identical_to_no_steering", "test_batch_equals_smaller_batches_with_poisoned_pads",
    "test_batch_of_mixed_rows_equals_single_rows", "test_beams_of_rows_with_several_images_are_those_of_the_row_alone",
    "test_cached_batched_decoding_matches_recomputation_by_row", "test_capture_reads_the_patches_of_each_row",
    "test_chosen_heads_equal_plain_hooks_in_every_family", "test_content_of_pads_changes_nothing",
    "test_continuations_equal_a_plain_hook", "test_dose_is_that_of_whole_rows",
    "test_edited_model_of_each_family_is_read_and_steered_as_any_model",
    "test_every_cell_equals_one_forward_with_a_hook", "test_every_point_and_each_head",
    "test_every_steerer_adds_its_vector", "test_generate_of_hugging_face_gives_the_ids_of_steerlab_generate",
    "test_generation_with_steered_vision_matches_recomputation", "test_image_text_models_are_steered_as_well",
    "test_model_is_bit_identical_after_steering_and_after_exceptions", "test_nnsight_and_hooks_generate_the_same",
    "test_operators_change_images_and_text_as_plain_hooks_do", "test_operators_equal_plain_hooks_in_every_family",
    "test_operators_match_local", "test_output_of_block_k_is_hidden_states_k_plus_one",
    "test_padded_batch_equals_single_rows_with_plain_hooks", "test_saved_folder_loads_as_the_same_model",
    "test_self_check_keeps_heads_and_captures_what_the_projection_is_given",
    "test_shared_prompt_states_match_hugging_faces_whole_rows",
    "test_states_are_those_of_hugging_face_on_the_processors_output", "test_states_do_not_depend_on_padding",
    "test_steering_equals_plain_passes_and_steers_the_prompt_only", "test_vector_is_added_to_the_patches_of_its_row",
}  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    # the checks of types put frames of their own between those of our functions
    if config.getoption("--jaxtyping-packages", None):
        sys.setrecursionlimit(4 * sys.getrecursionlimit())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        values = {v for v in params.values() if isinstance(v, str)}
        other_family = values & {*FAMILIES, *VLM_FAMILIES} and not values & BY_DAY
        if getattr(item, "originalname", "") in LONGEST and (other_family or "sandboxed" in values):
            item.add_marker(pytest.mark.nightly)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`data` needs the folder of data that are not part of the package, and `data("driving")` that part of it."""
    if marker := item.get_closest_marker("data"):
        folder = os.environ.get("STEERLAB_DATA")
        if not folder or not Path(folder, *marker.args).exists():
            pytest.skip(f"STEERLAB_DATA names no folder with {'/'.join(marker.args) or 'data'}")


@cache
def _lm(family: str, backend: str) -> Model:
    return tiny_lm(family, backend=backend)


@pytest.fixture(scope="session")
def lm() -> Callable[..., Model]:
    """`lm(family, backend)`: a tiny model shared by the whole session; a test that changes one builds its own."""
    return lambda family="llama", backend="hooks": _lm(family, backend)


@pytest.fixture(scope="session")
def _converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture
def smollm2_cache(_converted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the session's own: the first test that loads "smollm2" converts it, others find it there."""
    monkeypatch.setenv("STEERLAB_CACHE", str(_converted))
    return _converted


@pytest.fixture
def doctor_on(capsys: pytest.CaptureFixture[str]) -> Callable[[str, str], tuple[int, str]]:
    """`doctor_on("--serve", host)`: the command's exit status and, on one line, its report of the server."""

    def run(option: str, host: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["doctor", option, host])
        return status, re.sub(r"\s+", " ", capsys.readouterr().out.partition("\nservers\n")[2])

    return run
