"""Tampered artifacts are refused by name, whatever was changed and wherever."""

import json
import shutil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tampering import ARTIFACTS, Artifact, fields_of, flip, outcome, prepare, run

from steerlab._support.files import seal

VALUES = (None, True, -1, 10**30, float("nan"), 1.5, "", "x", [], [1], {}, {"a": 1})


@pytest.fixture(scope="module", params=ARTIFACTS, ids=lambda artifact: artifact.name)
def prepared(request, tmp_path_factory) -> tuple[Artifact, Any]:
    return request.param, prepare(request.param, tmp_path_factory.mktemp("artifacts"))


def test_every_tampered_artifact_is_refused_by_name() -> None:
    found = run()
    assert not [case for case in found["cases"] if not case["outcome"].startswith("refused")]
    assert found["accepted"] == 0 and found["tried"] >= 60


@given(data=st.data(), place=st.floats(0, 1), cut=st.booleans())
def test_flipped_bit_or_cut_anywhere_is_refused_or_without_effect(prepared, tmp_path_factory, data, place, cut) -> None:
    artifact, (folder, _, expected, names) = prepared
    copy = tmp_path_factory.mktemp("copy") / "artifact"
    shutil.copytree(folder, copy)
    patterns = (artifact.manifest, *artifact.parts)
    path = data.draw(st.sampled_from(sorted(p for pattern in patterns for p in copy.glob(pattern))))
    content = path.read_bytes()
    path.write_bytes(content[: round(place * (len(content) - 1))] if cut else flip(place, content))
    assert outcome(artifact, copy, expected, names).partition(":")[0] in ("refused", "identical")


@given(data=st.data(), drop=st.booleans(), sealed=st.booleans(), value=st.sampled_from(VALUES))
def test_manifest_field_that_is_missing_or_of_another_type_is_refused(
    prepared, tmp_path_factory, data, drop, sealed, value
) -> None:
    """Also where the checksum was made to fit: such a manifest may be accepted, but no error is a foreign one."""
    artifact, (folder, _, expected, names) = prepared
    copy = tmp_path_factory.mktemp("copy") / "artifact"
    shutil.copytree(folder, copy)
    path = copy / artifact.manifest
    manifest = json.loads(path.read_text())
    paths = branches(manifest)
    *parents, last = data.draw(st.sampled_from(sorted(paths, key=str)))
    holder = manifest
    for key in parents:
        holder = holder[key]
    if drop:
        del holder[last]
    else:
        holder[last] = value
    if sealed:
        manifest.pop("checksum", None)
    path.write_text(json.dumps(seal(manifest) if sealed else manifest))
    fields = {key for keys in paths for key in keys if isinstance(key, str)}
    found = outcome(artifact, copy, expected, names | fields | {f"{copy}/"}).partition(":")[0]
    assert found in (("refused", "identical", "accepted") if sealed else ("refused", "identical"))


def branches(value: Any) -> set[tuple[Any, ...]]:
    """The paths of all values in a JSON value, also of those that hold others."""
    return {path[: n + 1] for path in fields_of(value) for n in range(len(path))}
