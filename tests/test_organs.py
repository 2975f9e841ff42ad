"""The registry says each thing once, and finds it under every name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organdetr_monai.errors import InputError
from organdetr_monai.organs import ORGANS, PARTS, SETS, channel_def, mirror, resolve


def test_totalsegmentator_ids_are_one_to_117():
    ids = [organ.totalsegmentator_id for organ in ORGANS.values() if organ.totalsegmentator_id]
    assert ids == list(range(1, 118))


def test_ids_agree_with_a_real_label_map():
    path = Path(__file__).parents[2] / "shared" / "data" / "torso" / "labels.json"
    if not path.exists():
        pytest.skip("shared/data is on development machines only")
    labels = json.loads(path.read_text())["labels"]
    assert {name: ORGANS[name].totalsegmentator_id for name in labels} == labels


@pytest.mark.parametrize(
    "name, canonical",
    [
        ("Left Kidney", "kidney_left"),
        ("kidney-RIGHT", "kidney_right"),
        ("postcava", "inferior_vena_cava"),
        ("arota", "aorta"),
        ("gall bladder", "gallbladder"),
        ("prostate/uterus", "prostate_uterus"),
        ("Bladder", "urinary_bladder"),
        ("Head_of_femur_L", "femoral_head_left"),
        ("LeftParotid", "parotid_gland_left"),
        ("BrainStem", "brainstem"),
        ("L1", "vertebrae_L1"),
        ("left adrenal gland", "adrenal_gland_left"),
        ("clavicle right", "clavicula_right"),
        ("rib_left_4", "rib_left_4"),
    ],
)
def test_resolve(name, canonical):
    assert resolve(name) == canonical


@given(st.sampled_from(sorted(ORGANS)), st.randoms(use_true_random=False), st.sampled_from(" _-/"))
def test_resolve_ignores_case_separators_and_order(name, rng, separator):
    words = name.split("_")
    rng.shuffle(words)
    spelled = separator.join(rng.choice((str.lower, str.upper, str.title))(word) for word in words)
    assert resolve(spelled) == name


def test_every_name_title_and_alias_leads_home():
    for organ in ORGANS.values():
        assert all(resolve(name) == organ.name for name in (organ.name, organ.title, *organ.aliases))


def test_unknown_organs_are_named_with_suggestions():
    with pytest.raises(InputError, match=r"'livr'.*liver"):
        resolve("livr")
    with pytest.raises(InputError, match=r"'kidny left'.*kidney_left"):
        resolve("kidny left")
    with pytest.raises(InputError, match="organdetr organs"):
        resolve("zzzz")


def test_left_is_not_right():
    assert resolve("l kidney") != resolve("r kidney")
    assert "left" in ORGANS["kidney_left"].title.lower()


def test_mirror_is_its_own_inverse():
    for organ in ORGANS.values():
        if organ.name == "lung_middle_lobe_right":
            with pytest.raises(InputError, match="counterpart"):
                mirror(organ.name)
            continue
        other = mirror(organ.name)
        assert mirror(other) == organ.name
        assert (other == organ.name) == (organ.side is None)
    assert mirror("Left lung") == "lung_right"
    assert mirror("heart_atrium_left") == "heart_atrium_left"  # a chamber's name, not a side of the body


@pytest.mark.parametrize("name", SETS)
def test_sets(name):
    organ_set = SETS[name]
    assert organ_set.name == name
    assert len(set(organ_set.organs)) == len(organ_set.organs)
    assert all(organ in ORGANS for organ in organ_set.organs)
    assert {mirror(organ) for organ in organ_set.organs} == set(organ_set.organs), "flips need both sides"
    assert all(size > 0 and size % 32 == 0 for size in organ_set.window)
    assert all(spacing > 0 for spacing in organ_set.spacing)
    assert 0 < organ_set.matching_ratio < 0.9
    assert organ_set.num_queries > len(organ_set.organs)


def test_sets_of_the_paper():
    counts = {name: (len(SETS[name].organs), SETS[name].num_queries) for name in SETS}
    assert counts["abdomenct1k"] == (5, 100)
    assert counts["word"] == (10, 200)
    assert counts["totalsegmentator"] == (19, 600)
    assert counts["amos"] == (15, 400)
    assert counts["verse"] == (24, 200)
    assert SETS["verse"].organs[0] == "vertebrae_C1" and SETS["verse"].organs[-1] == "vertebrae_L5"


def test_parts_are_organs():
    for whole, alternatives in PARTS.items():
        assert whole in ORGANS
        assert all(part in ORGANS for parts in alternatives for part in parts)


def test_channel_def():
    assert channel_def(["Left kidney", "liver"]) == {"0": "background", "1": "kidney_left", "2": "liver"}


def test_the_registry_is_light():
    code = "import sys, organdetr_monai.organs; print([m for m in ('torch', 'numpy', 'monai') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
