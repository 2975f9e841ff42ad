"""The registry of organs: names, sides, aliases and the public sets, each written down once.

Names are those of TotalSegmentator v2; what it lacks (whole lungs, head-and-neck organs, the odd vertebrae of VerSe)
follows the same pattern. This module imports neither torch nor numpy, so that a command line may read it at once.
The sets (`SETS`, `OrganSet`) are written in `organ_sets` and belong to this module's interface.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from organdetr_monai.errors import InputError
from organdetr_monai.organ_sets import SETS, OrganSet

__all__ = ["NAME", "ORGANS", "PARTS", "SETS", "Organ", "OrganSet", "channel_def", "mirror", "resolve"]

#: What a name of an organ may be: nothing that a config would take for a reference, a macro or an expression.
NAME = re.compile(r"\w[\w .,()/+-]*")


@dataclass(frozen=True)
class Organ:
    """One structure that a box can stand around.

    Attributes
    ----------
    name : str
        Canonical name, such as ``"kidney_left"``.
    title : str
        For people: ``"Left kidney"``.
    side : {"left", "right"} or None
        Side of the patient. None for what lies in the middle or keeps its name in a mirror (the left atrium does).
    aliases : tuple of str
        Other names; `resolve` ignores case, separators and the order of words, so only real differences are listed.
    totalsegmentator_id : int or None
        Label in TotalSegmentator v2 (task ``total``).
    """

    name: str
    title: str
    side: str | None = None
    aliases: tuple[str, ...] = ()
    totalsegmentator_id: int | None = None


_VERTEBRAE_UPWARDS = [
    *(f"vertebrae_L{n}" for n in range(5, 0, -1)),
    *(f"vertebrae_T{n}" for n in range(12, 0, -1)),
    *(f"vertebrae_C{n}" for n in range(7, 0, -1)),
]
_RIBS = [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]

# Label ids of TotalSegmentator v2, in order: the first name has id 1.
_TOTALSEGMENTATOR_V2 = [
    *"spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right".split(),
    *"adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right".split(),
    *"lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum".split(),
    *"colon urinary_bladder prostate".split(),
    *"kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1".split(),
    *_VERTEBRAE_UPWARDS,
    *"heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left".split(),
    *"common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left".split(),
    *"brachiocephalic_vein_right atrial_appendage_left superior_vena_cava inferior_vena_cava".split(),
    *"portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right".split(),
    *"humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right".split(),
    *"femur_left femur_right hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right".split(),
    *"gluteus_medius_left gluteus_medius_right gluteus_minimus_left gluteus_minimus_right".split(),
    *"autochthon_left autochthon_right iliopsoas_left iliopsoas_right brain skull".split(),
    *_RIBS,
    *"sternum costal_cartilages".split(),
]

# Names that other sets need. The heart's chambers and the face are TotalSegmentator v1's and have gone from v2.
_OTHERS = [
    *"lung_left lung_right lungs kidneys adrenal_glands".split(),
    *"heart_myocardium heart_atrium_left heart_ventricle_left heart_atrium_right heart_ventricle_right".split(),
    *"pulmonary_artery face rectum uterus prostate_uterus femoral_head_left femoral_head_right".split(),
    *"vertebrae_L6 vertebrae_T13 coccyx".split(),
    *"brainstem parotid_gland_left parotid_gland_right larynx mandible".split(),
    *"submandibular_gland_left submandibular_gland_right optic_chiasm".split(),
    *"eye_left eye_right eye_lens_left eye_lens_right optic_nerve_left optic_nerve_right".split(),
]

# "left" here tells a chamber from its fellow, not a side of the body: a mirrored heart still has its left atrium.
_NOT_LATERAL = {
    *"heart_atrium_left heart_atrium_right heart_ventricle_left heart_ventricle_right atrial_appendage_left".split()
}

_TITLES = {
    "portal_vein_and_splenic_vein": "Portal and splenic vein",
    "prostate_uterus": "Prostate or uterus",
    "autochthon_left": "Left autochthonous back muscles",
    "autochthon_right": "Right autochthonous back muscles",
    "vertebrae_S1": "Vertebra S1",
    "heart_atrium_left": "Left atrium of the heart",
    "heart_atrium_right": "Right atrium of the heart",
    "heart_ventricle_left": "Left ventricle of the heart",
    "heart_ventricle_right": "Right ventricle of the heart",
    "atrial_appendage_left": "Left atrial appendage",
}

_ALIASES: dict[str, tuple[str, ...]] = {
    "gallbladder": ("gall bladder",),
    "aorta": ("arota",),  # spelled so in AMOS's own dataset.json
    "inferior_vena_cava": ("postcava", "post cava", "ivc", "vena cava inferior"),
    "superior_vena_cava": ("precava", "svc"),
    "portal_vein_and_splenic_vein": ("portal vein splenic vein", "veins"),
    "esophagus": ("oesophagus",),
    "urinary_bladder": ("bladder",),
    "small_bowel": ("small intestine", "intestine"),  # WORD calls the small bowel "intestine"
    "colon": ("large bowel", "large intestine"),
    "prostate_uterus": ("prostate or uterus",),
    "adrenal_glands": ("adrenal", "adrenals", "adrenal gland"),
    "kidneys": ("kidney",),
    "lungs": ("lung",),
    "thyroid_gland": ("thyroid",),
    "spinal_cord": ("spinal canal", "myelum"),
    "brainstem": ("brain stem",),
    "coccyx": ("cocygis", "coccygis"),
    "optic_chiasm": ("chiasm",),
    "mandible": ("lower jaw",),
    "prostate": ("prostate gland",),
    "pulmonary_artery": ("pulmonary trunk",),
}
# For paired organs, words that stand in for the name without its side.
_PAIRED_ALIASES: dict[str, tuple[str, ...]] = {
    "adrenal_gland": ("adrenal", "suprarenal gland"),
    "parotid_gland": ("parotid",),
    "submandibular_gland": ("submandibular",),
    "clavicula": ("clavicle",),
    "iliac_vena": ("iliac vein",),
    "femoral_head": ("head of femur", "femur head"),
    "autochthon": ("autochthonous muscles",),
    "eye": ("eyeball",),
    "eye_lens": ("lens",),
}

#: What a coarser organ is made of: alternatives in order of preference, each a tuple of names that are merged.
PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lung_left": (("lung_upper_lobe_left", "lung_lower_lobe_left"),),
    "lung_right": (("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),),
    "heart": (
        ("heart", "atrial_appendage_left"),
        (
            "heart_myocardium",
            "heart_atrium_left",
            "heart_ventricle_left",
            "heart_atrium_right",
            "heart_ventricle_right",
        ),
    ),
    "lungs": (("lung_left", "lung_right"),),
    "kidneys": (("kidney_left", "kidney_right"),),
    "adrenal_glands": (("adrenal_gland_left", "adrenal_gland_right"),),
}


def _side(name: str) -> str | None:
    if name in _NOT_LATERAL:
        return None
    return next((word for word in name.split("_") if word in ("left", "right")), None)


def _title(name: str) -> str:
    if name in _TITLES:
        return _TITLES[name]
    words = name.replace("vertebrae_", "vertebra_").split("_")
    side = _side(name)
    words = [side, *(word for word in words if word != side)] if side else words
    sentence = " ".join(words)
    return sentence[0].upper() + sentence[1:]


def _aliases(name: str) -> tuple[str, ...]:
    side = _side(name)
    if side:
        bare = "_".join(word for word in name.split("_") if word != side)
        return tuple(f"{side} {alias}" for alias in _PAIRED_ALIASES.get(bare, ()))
    if name.startswith("vertebrae_"):
        level = name.removeprefix("vertebrae_")
        return (level, f"vertebra {level}")
    return _ALIASES.get(name, ())


def _organ(name: str, number: int | None) -> Organ:
    return Organ(name, _title(name), _side(name), _aliases(name), number)


#: Every known organ by its canonical name: TotalSegmentator v2's in the order of their ids, then the others.
ORGANS: dict[str, Organ] = {
    **{name: _organ(name, number) for number, name in enumerate(_TOTALSEGMENTATOR_V2, start=1)},
    **{name: _organ(name, None) for name in _OTHERS},
}

_SHORT = {"l": "left", "lt": "left", "r": "right", "rt": "right"}
_FILLERS = {"of", "the", "or", "and"}


def _key(name: str) -> tuple[str, ...]:
    """The words of a name, in alphabetical order: "Left Kidney", "kidney-left" and "kidney_L" have one key."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # LeftParotid, as OpenKBP writes
    words = re.findall(r"[a-z0-9]+", spaced.lower())
    return tuple(sorted(_SHORT.get(word, word) for word in words if word not in _FILLERS))


def _index() -> dict[tuple[str, ...], str]:
    index: dict[tuple[str, ...], str] = {}
    for organ in ORGANS.values():
        for name in (organ.name, organ.title, *organ.aliases):
            if index.setdefault(_key(name), organ.name) != organ.name:
                raise ValueError(f"{name!r} would mean both {organ.name} and {index[_key(name)]}")
    return index


_INDEX = _index()


def resolve(name: str) -> str:
    """Canonical name of an organ.

    Parameters
    ----------
    name : str
        Any spelling: case, separators, word order and ``l``/``r`` for the sides do not matter, aliases are known.

    Returns
    -------
    str
        A key of `ORGANS`.

    Raises
    ------
    InputError
        The registry does not know the organ; the nearest names are suggested.

    Examples
    --------
    >>> resolve("Left Kidney"), resolve("postcava"), resolve("L1")
    ('kidney_left', 'inferior_vena_cava', 'vertebrae_L1')
    """
    found = _INDEX.get(_key(name))
    if found is not None:
        return found
    spellings = {" ".join(key): canonical for key, canonical in _INDEX.items()}
    near = difflib.get_close_matches(" ".join(_key(name)), spellings, n=6, cutoff=0.6)
    suggestions = list(dict.fromkeys(spellings[spelling] for spelling in near))[:3]
    hint = f"Did you mean {', '.join(suggestions)}?" if suggestions else "`organdetr organs` lists the known ones."
    raise InputError(f"Unknown organ {name!r}.", hint)


def mirror(name: str) -> str:
    """The organ on the other side; organs without a side are their own mirror image.

    Raises
    ------
    InputError
        Unknown organ, or one that exists on one side only (the right lung's middle lobe).
    """
    name = resolve(name)
    side = ORGANS[name].side
    if side is None:
        return name
    other = "right" if side == "left" else "left"
    mirrored = "_".join(other if word == side else word for word in name.split("_"))
    if mirrored not in ORGANS:
        raise InputError(f"{name} has no counterpart on the {other}.", "Merge it into a paired organ before mirroring.")
    return mirrored


def channel_def(organs: Iterable[str]) -> dict[str, str]:
    """Names of the class channels, as a bundle's metadata wants them.

    Examples
    --------
    >>> channel_def(["liver", "spleen"])
    {'0': 'background', '1': 'liver', '2': 'spleen'}
    """
    return {str(number): name for number, name in enumerate(("background", *map(resolve, organs)))}
