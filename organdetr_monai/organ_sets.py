"""The sets of organs that models are trained on: their lists, working grids and matching, each written down once."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class OrganSet:
    """A fixed list of organs with the working grid and the matching that go with it.

    Attributes
    ----------
    name, title : str
        Key in `SETS`, and the name for people.
    organs : tuple of str
        Canonical names; the position fixes the class id (``organs[k]`` has id ``k + 1``).
    spacing : tuple of 3 floats
        Voxel size of the working grid in mm, axes right-left, anterior-posterior, inferior-superior.
    window : tuple of 3 ints
        Size of the network's window in voxels of that grid, same axes.
    num_queries : int
        N.
    matching_ratio : float
        Lambda of the dense query matching.
    source, licence : str
        Whom to cite, and under which terms the scans come.
    """

    name: str
    title: str
    organs: tuple[str, ...]
    spacing: tuple[float, float, float] = field(metadata={"unit": "mm"})
    window: tuple[int, int, int] = field(metadata={"unit": "voxel"})
    num_queries: int
    matching_ratio: float = 0.2
    source: str = ""
    licence: str = ""


_ADRENALS = ("adrenal_gland_left", "adrenal_gland_right")
_KIDNEYS = ("kidney_left", "kidney_right")
_LUNGS = ("lung_left", "lung_right")
_PHANTOM = (*_LUNGS, *"heart aorta liver gallbladder stomach spleen pancreas".split(), *_KIDNEYS, "urinary_bladder")
_OPENKBP = tuple("brainstem spinal_cord parotid_gland_right parotid_gland_left esophagus larynx mandible".split())
_WORD = ("pancreas", "duodenum", *_KIDNEYS, *"spleen urinary_bladder liver stomach small_bowel colon".split())
_TORSO = (
    *"gallbladder pancreas esophagus".split(),
    *_ADRENALS,
    *("trachea", "urinary_bladder"),
    *_KIDNEYS,
    *"spleen aorta duodenum liver small_bowel colon stomach heart".split(),
    *_LUNGS,
)
_AMOS = (
    "esophagus",
    *_ADRENALS,
    "prostate_uterus",
    *_KIDNEYS,
    *"spleen pancreas gallbladder aorta inferior_vena_cava duodenum urinary_bladder liver stomach".split(),
)
# From the neck down, as one reads a spine.
_VERSE = tuple(f"vertebrae_{part}{n}" for part, count in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, count + 1))

#: The sets, by name. N, lambda and the windows are the paper's. Where it gives no spacing (WORD, TotalSegmentator,
#: AMOS), ours lets the window cover the trunk: 45-51 cm across, and as long as the scans usually are.
SETS: dict[str, OrganSet] = {
    s.name: s
    for s in (
        OrganSet(
            "phantom",
            "Synthetic phantom",
            _PHANTOM,
            spacing=(5.0, 5.0, 5.0),
            window=(96, 64, 96),
            num_queries=100,
            source="made by `organdetr phantom`",
            licence="same as this project",
        ),
        OrganSet(
            "openkbp",
            "OpenKBP head and neck",
            _OPENKBP,
            spacing=(4.0, 4.0, 4.0),
            window=(128, 64, 96),  # shoulders included; half of the scans fit, the others take a second window
            num_queries=100,
            source="Babier et al., Medical Physics 2021, with CTs of The Cancer Imaging Archive",
            licence="repository MIT; scans under the terms of their TCIA collections",
        ),
        OrganSet(
            "abdomenct1k",
            "AbdomenCT-1K",
            ("pancreas", *_KIDNEYS, "spleen", "liver"),
            spacing=(2.0, 2.0, 2.0),
            window=(224, 224, 96),
            num_queries=100,
            source="Ma et al., IEEE TPAMI 2022",
            licence="see its download page",
        ),
        OrganSet(
            "word",
            "WORD",
            _WORD,
            spacing=(2.0, 2.0, 3.0),
            window=(224, 224, 160),
            num_queries=200,
            source="Luo et al., Medical Image Analysis 2022",
            licence="GPL-3.0, for academic research only",
        ),
        OrganSet(
            "totalsegmentator",
            "TotalSegmentator (thorax-abdomen-pelvis)",
            _TORSO,
            spacing=(3.0, 3.0, 3.0),
            window=(160, 160, 256),
            num_queries=600,
            source="Wasserthal et al., Radiology: Artificial Intelligence 2023",
            licence="CC BY 4.0",
        ),
        OrganSet(
            "amos",
            "AMOS (CT)",
            _AMOS,
            spacing=(2.0, 2.0, 4.0),
            window=(256, 256, 128),
            num_queries=400,
            source="Ji et al., NeurIPS Datasets and Benchmarks 2022",
            licence="see its download page",
        ),
        OrganSet(
            "verse",
            "VerSe",
            _VERSE,
            spacing=(3.0, 3.0, 3.0),
            window=(64, 64, 256),
            num_queries=200,
            source="Sekuboyina et al., Medical Image Analysis 2021; Löffler et al. 2020; Liebl et al. 2021",
            licence="CC BY-SA 4.0",
        ),
    )
}
