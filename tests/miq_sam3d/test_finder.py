"""The whole way of a click, with a network that knows the answer: what comes back is exact, wherever the scan lies."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from organdetr_monai import LesionFinder as exported
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import voxel_to_lps
from organdetr_monai.miq_sam3d.finder import LesionFinder
from tests.affines import SIGNED_PERMUTATIONS, reorient, rotation
from tests.data.scan_files import write
from tests.miq_sam3d.click_bundle import KINDS, LESIONS, make_click_bundle, make_finder, scan

STRAIGHT = np.diag([2.0, 2.0, 2.0, 1.0])
OBLIQUE = STRAIGHT.copy()
OBLIQUE[:3, :3] = rotation([0.3, -0.2, 0.5]) @ STRAIGHT[:3, :3]
CYSTS = [lesion for lesion in LESIONS if lesion[2] == KINDS["cyst"]]
TUMOURS = [lesion for lesion in LESIONS if lesion[2] == KINDS["tumour"]]


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    return make_finder(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def volume():
    return scan(lesions=LESIONS)


def middle(lesion) -> tuple[int, ...]:
    start, stop, _ = lesion
    return tuple((a + b) // 2 for a, b in zip(start, stop, strict=True))


def masks(labels) -> set[bytes]:
    """The instances whatever their numbers."""
    return {np.packbits(labels == number).tobytes() for number in range(1, int(labels.max()) + 1)}


@pytest.mark.parametrize("clicked", LESIONS, ids=lambda lesion: f"{lesion[2]:g} HU at {lesion[0]}")
def test_every_lesion_of_the_clicked_kind_and_no_other(finder, volume, clicked):
    answer = finder((volume, STRAIGHT), [middle(clicked)], space="voxel")
    alike = [lesion for lesion in LESIONS if lesion[2] == clicked[2]]
    assert np.array_equal(answer.labels > 0, volume == clicked[2])
    assert answer.found and answer.reason is None and answer.labels.dtype == np.uint16
    assert sorted(lesion.box_voxel for lesion in answer.lesions) == sorted((*a, *b) for a, b, _ in alike)
    first, *others = answer.lesions
    assert first.clicked and first.box_voxel == (*clicked[0], *clicked[1]) and not any(o.clicked for o in others)
    assert answer.labels[middle(clicked)] == 1
    for lesion in answer.lesions:
        size = np.subtract(lesion.box_voxel[3:], lesion.box_voxel[:3])
        assert lesion.volume_ml == pytest.approx(size.prod() * 8 / 1000)
        assert lesion.centroid_mm == pytest.approx(lesion.box.center)


def test_which_lesion_of_a_kind_is_clicked_does_not_matter(finder, volume):
    session = finder.open((volume, STRAIGHT))
    answers = [session.click([middle(lesion)], space="voxel") for lesion in CYSTS]
    for a, b in combinations(answers, 2):
        assert masks(a.labels) == masks(b.labels)


def test_lesions_that_touch_stay_two(finder):
    touching = [((8, 8, 8), (16, 16, 16), 100.0), ((16, 16, 8), (24, 24, 16), 100.0)]  # along an edge
    array = scan(lesions=touching)
    answer = finder((array, STRAIGHT), [(10, 10, 10)], space="voxel")
    assert [lesion.box_voxel for lesion in answer.lesions] == [(8, 8, 8, 16, 16, 16), (16, 16, 8, 24, 24, 16)]


@pytest.mark.parametrize("directions", SIGNED_PERMUTATIONS[::5], ids=str)
def test_clicked_voxel_has_id_1_however_the_scan_is_stored(finder, volume, directions):
    """Flips and permutations: the same instances at the same places of the patient, to the voxel."""
    order = np.abs(directions).argmax(axis=0)
    flips = directions.sum(axis=0) < 0
    array, affine = reorient(volume, STRAIGHT, order, flips)
    (point,) = voxel_to_lps(np.array([middle(CYSTS[1])]) + 0.5, STRAIGHT)
    answer = finder((array, affine), [point], space="lps")
    assert np.array_equal(answer.labels > 0, array == KINDS["cyst"])
    assert answer.labels[answer.clicks[0].voxel] == 1 and answer.clicks[0].point_mm == pytest.approx(tuple(point))
    assert (array == KINDS["cyst"])[answer.clicks[0].voxel]


@pytest.mark.parametrize("spacing", [(2, 2, 2), (1.4, 1.5, 3.0), (0.9, 5.0, 1.0), (2.5, 2.5, 7.0)])
@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, -0.2, 0.5), (2.0, 1.0, -1.5)])
def test_clicked_voxel_has_id_1_under_any_spacing_and_angle(finder, spacing, angles):
    """Boxes of 24 mm in every grid; each click, wherever in the lesion, is answered in its own voxel."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * spacing
    affine[:3, 3] = (-120.5, 33.25, -804.5)
    shape = tuple(int(np.ceil(100 / step)) for step in spacing)
    boxes = [
        tuple(tuple(round(mm / step) for mm, step in zip(corner, spacing, strict=True)) for corner in (a, a + 24))
        for a in (np.array([20, 20, 20]), np.array([20, 60, 60]), np.array([65, 20, 50]))
    ]
    array = scan(shape, lesions=[(*box, 100.0) for box in boxes], margin=1)
    session = finder.open((array, affine))
    generator = np.random.default_rng(0)
    for start, stop in boxes:
        inner = np.add(start, 1), np.maximum(np.subtract(stop, 1), np.add(start, 2))
        voxel = generator.integers(*inner)
        answer = session.click(voxel_to_lps([voxel + 0.5], affine), space="lps")
        assert answer.clicks[0].voxel == tuple(voxel.tolist()) and answer.labels[tuple(voxel)] == 1
        # The oracle leaves out what resampling blurs, all around: it cannot be larger, and its middle stays.
        assert not (answer.labels > 0)[array != 100].any()
        middles = [voxel_to_lps(np.add(a, b) / 2, affine) for a, b in boxes]
        found = [np.linalg.norm(np.subtract(middles, lesion.centroid_mm), axis=1) for lesion in answer.lesions]
        assert sorted(int(gap.argmin()) for gap in found) == [0, 1, 2]
        assert max(gap.min() for gap in found) <= 1 + max(spacing) / 2


def test_boxes_of_an_oblique_scan_are_oblique(finder, volume):
    answer = finder((volume, OBLIQUE), [middle(CYSTS[0])], space="voxel")
    assert np.array_equal(answer.labels > 0, volume == KINDS["cyst"])
    assert not answer.lesions[0].box.is_axis_aligned
    assert answer.lesions[0].centroid_mm == pytest.approx(answer.lesions[0].box.center)


def test_answers_depend_on_the_clicks_alone(finder, volume):
    """Whatever was asked before; undo is asking without the last click."""
    a, b = middle(CYSTS[0]), middle(TUMOURS[1])
    fresh = finder((volume, STRAIGHT), [a], space="voxel")
    session = finder.open((volume, STRAIGHT))
    for points in ([b], [a, b], [b, a]):
        session.click(points, space="voxel")
    again = session.click([a], space="voxel")
    assert np.array_equal(again.labels, fresh.labels) and again.lesions == fresh.lesions


def test_second_click_needs_no_encoder(finder, volume):
    session, network = finder.open((volume, STRAIGHT)), finder.network
    network.encoded = network.retrieved = 0
    session.click([middle(CYSTS[0])], space="voxel")
    assert network.retrieved >= network.encoded > 50
    windows = network.encoded
    session.click([middle(TUMOURS[0])], space="voxel")
    assert network.encoded == windows and network.retrieved >= 2 * windows
    retrieved = network.retrieved
    session.click([middle(CYSTS[0])], space="voxel")
    assert network.retrieved == retrieved, "and the same click again needs no decoder"


def test_memory_is_bounded_and_changes_no_answer(tmp_path, finder, volume):
    limited = make_finder(tmp_path, **{"inferer#cache_bytes": 20 * 16**3 * 4 + 5})
    a, b = (f.open((volume, STRAIGHT)) for f in (finder, limited))
    for lesion in (CYSTS[0], TUMOURS[0]):
        points = [middle(lesion)]
        assert np.array_equal(a.click(points, space="voxel").labels, b.click(points, space="voxel").labels)
    assert b._encodings.kept_bytes == 20 * 16**3 * 4
    clicks, most = 2, 2 * len(b._encodings.occupied) - 20
    assert most <= limited.network.encoded <= most + clicks, "each click's window is looked at twice"


def test_nothing_to_find_is_an_answer(finder, volume):
    answer = finder((volume, STRAIGHT), [(25, 20, 5)], space="voxel")
    assert not answer.found and answer.lesions == () and not answer.labels.any()
    assert answer.reason == "There is nothing to find at voxel (25, 20, 5): no lesion there."


def test_clicks_of_one_kind_are_one_answer(finder, volume):
    session = finder.open((volume, STRAIGHT))
    one = session.click([middle(CYSTS[0])], space="voxel")
    answer = session.click([middle(CYSTS[2]), middle(CYSTS[0])], space="voxel")
    assert masks(answer.labels) == masks(one.labels)
    assert [lesion.clicked for lesion in answer.lesions] == [True, True, False]
    assert {lesion.kind for lesion in answer.lesions} == {1}
    assert [click.lesion for click in answer.clicks] == [1, 2]


def test_clicks_of_several_kinds_are_answered_each_for_itself(finder, volume):
    points = [middle(TUMOURS[0]), middle(CYSTS[0]), (25, 20, 5)]
    answer = finder((volume, STRAIGHT), points, space="voxel")
    assert np.array_equal(answer.labels > 0, volume > 0)
    for lesion in answer.lesions:
        (hu,) = np.unique(volume[answer.labels == lesion.id])
        assert lesion.kind == (1 if hu == KINDS["tumour"] else 2)
    assert [click.lesion for click in answer.clicks] == [1, 2, None]
    assert answer.found and "(25, 20, 5)" in answer.reason


def test_more_lesions_than_queries_are_told(finder, volume, monkeypatch):
    with pytest.warns(UserWarning, match="raise num_queries"):
        monkeypatch.setattr(finder.network, "queries", 1)
        finder((volume, STRAIGHT), [middle(CYSTS[0])], space="voxel")


def test_background_clicks_take_lesions_out(finder, volume):
    session = finder.open((volume, STRAIGHT))
    unwanted = [middle(CYSTS[1]), (25, 20, 5)]
    answer = session.click([middle(CYSTS[0])], space="voxel", background=unwanted)
    left = {(*a, *b) for a, b, _ in (CYSTS[0], CYSTS[2])}
    assert {lesion.box_voxel for lesion in answer.lesions} == left
    assert sorted(np.unique(answer.labels)) == [0, 1, 2] and answer.labels[middle(CYSTS[0])] == 1
    with pytest.raises(InputError, match="lies in a lesion that was clicked"):
        session.click([middle(CYSTS[0])], space="voxel", background=[(7, 7, 7)])


def test_image_smaller_than_the_window(finder):
    array = scan((14, 12, 15), lesions=[((4, 4, 4), (8, 8, 8), 100.0)], margin=1)
    answer = finder((array, STRAIGHT), [(5, 5, 5)], space="voxel")
    assert np.array_equal(answer.labels, (array == 100).astype(np.uint16))


def test_lesion_that_the_scan_cuts_says_so(finder):
    array = scan((40, 40, 40), lesions=[((10, 10, 30), (16, 16, 40), 100.0)], margin=0)
    (lesion,) = finder((array, STRAIGHT), [(12, 12, 35)], space="voxel").lesions
    assert lesion.truncated == ("superior",)


def test_lesions_that_a_coarse_scan_misses_are_left_out(finder):
    """A slice of 12 mm has six working slices; only the one in its middle decides."""
    thick = np.diag([2.0, 2.0, 12.0, 1.0])
    array = scan((40, 40, 8), lesions=[((6, 6, 2), (14, 14, 4), 100.0), ((24, 24, 5), (30, 30, 6), 100.0)], margin=1)
    answer = finder((array, thick), [(10, 10, 3)], space="voxel")
    assert answer.labels[10, 10, 3] == 1
    assert [lesion.id for lesion in answer.lesions] == list(range(1, int(answer.labels.max()) + 1))


POINT = [middle(CYSTS[0])]
BAD = [
    ({"points": POINT, "space": None}, "no unit"),
    ({"points": POINT, "space": "mm"}, "space is 'mm'"),
    ({"points": [], "space": "voxel"}, "no click"),
    ({"points": [(1, 2)], "space": "voxel"}, "three finite numbers"),
    ({"points": [(1, 2, np.nan)], "space": "voxel"}, "three finite numbers"),
    ({"points": [(48, 3, 3)], "space": "voxel"}, r"outside of the scan, whose voxels go from \(0, 0, 0\) to \(47, 39"),
    ({"points": [(-0.6, 3, 3)], "space": "voxel"}, "outside of the scan"),
    ({"points": [(30, 3, 3)], "space": "lps"}, r"stands between \(-95, -79, -1\) and \(1, 1, 111\) mm"),
    ({"points": [(0, 0, 0)], "space": "voxel"}, r"voxel \(0, 0, 0\) lies on air \(-1000 HU\)"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_unusable_clicks_are_refused_with_the_reason(finder, volume, options, message):
    with pytest.raises(InputError, match=message):
        finder.open((volume, STRAIGHT)).click(**options)


def test_unusable_scans_are_refused(finder, volume):
    holed = volume.copy()
    holed[3, 3, 3] = np.nan
    with pytest.raises(InputError, match="1 voxels that are NaN"):
        finder.open((holed, STRAIGHT))
    with pytest.raises(InputError, match="no body"):
        finder.open((np.full((20, 20, 20), -1000.0), STRAIGHT))


def test_missing_weights_and_other_bundles_are_refused(tmp_path, monkeypatch):
    assert exported is LesionFinder
    with pytest.raises(InputError, match="has no weights"):
        LesionFinder.load(make_click_bundle(tmp_path / "a", weights=False))
    other = make_click_bundle(tmp_path / "b", inferer={"_target_": "SimpleInferer"})
    with pytest.raises(InputError, match="does not answer clicks"):
        LesionFinder.load(other)


def test_file_and_array_give_one_answer(finder, volume, tmp_path):
    path = write(tmp_path / "scan.nii.gz", volume, OBLIQUE)
    from_file = finder(path, [middle(CYSTS[0])], space="voxel")
    from_array = finder((volume, OBLIQUE), [middle(CYSTS[0])], space="voxel")
    assert np.array_equal(from_file.labels, from_array.labels)
    assert from_file.image == str(path) and from_array.image is None
