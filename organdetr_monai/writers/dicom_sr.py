"""DICOM structured report (TID 1500) with a box for each organ, for scans that came as a DICOM series.

Needs ``highdicom`` (0.28 was tried; pure Python over pydicom), which the package's ``dicom-sr`` extra brings.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from organdetr_monai.detections import Detections, OrganDetection
from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing
from organdetr_monai.geometry import OrientedBox
from organdetr_monai.organs import ORGANS
from organdetr_monai.writers.appearance import title_of

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["dicom_sr", "write_dicom_sr"]

# Corners of each face, as rows of `OrientedBox.corners`, walked round so that neighbours share an edge; then closed.
_FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
_SCHEME = "99ORGANDETR"  # private, for organs and evaluations that SNOMED CT as pydicom carries it does not name

# Keywords of SNOMED CT codes in pydicom's dictionary, for organs without their side.
_SNOMED = {
    **{name: name.capitalize() for name in "liver spleen gallbladder stomach pancreas esophagus trachea".split()},
    **{name: name.capitalize() for name in "duodenum colon sacrum heart aorta larynx mandible sternum".split()},
    **{name: name.capitalize() for name in "brain prostate uterus rectum kidney lung femur humerus scapula".split()},
    "adrenal_gland": "AdrenalGland",
    "brainstem": "BrainStem",
    "clavicula": "Clavicle",
    "eye": "Eye",
    "femoral_head": "HeadOfFemur",
    "inferior_vena_cava": "InferiorVenaCava",
    "optic_chiasm": "OpticChiasm",
    "optic_nerve": "OpticNerve",
    "parotid_gland": "ParotidGland",
    "small_bowel": "SmallIntestine",
    "spinal_cord": "SpinalCord",
    "submandibular_gland": "SubmandibularGland",
    "superior_vena_cava": "SuperiorVenaCava",
    "thyroid_gland": "Thyroid",
    "urinary_bladder": "Bladder",
    **{f"vertebrae_C{n}": f"C{n}Vertebra" for n in range(1, 8)},
    **{f"vertebrae_T{n}": f"T{n}Vertebra" for n in range(1, 13)},
    **{f"vertebrae_L{n}": f"L{n}Vertebra" for n in range(1, 6)},
}


# Type 2 of the patient and study modules (PS3.3, C.7.1.1 and C.7.2.1): to be there, and empty where unknown.
# Anonymisers take them out altogether.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)


def dicom_sr(detections: Detections, headers: Iterable[Dataset]) -> Dataset:
    """Build the report.

    Parameters
    ----------
    detections : Detections
        Of the series; its box of each organ becomes a volume surface of six faces (SCOORD3D polygons, patient mm).
    headers : iterable of pydicom.Dataset
        Of all images of the series. Patient and study are copied from them, pixels are not needed.

    Returns
    -------
    pydicom.Dataset
        A Comprehensive 3D SR, template TID 1500, complete and not verified. Present organs are volumetric ROIs
        with their score and the faces of the scan that they reach; absent ones are said to be absent, with their score.

    Raises
    ------
    InputError
        No headers, several series, a series other than the detections', or one without frame of reference.
    ImportError
        Without highdicom.
    """
    hd = _highdicom()
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    sources = [_identified(header) for header in headers]
    frame = _check_sources(detections, sources)
    model = detections.model
    algorithm = hd.sr.AlgorithmIdentification(name=model.name, version=model.version)
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[model.name, model.version]),  # the same device in every report
        name=model.name,
        model_name=model.version,
    )
    observer = hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    series = hd.sr.SourceSeriesForSegmentation(referenced_series_instance_uid=sources[0].SeriesInstanceUID)
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[_group(hd, entry, algorithm, frame, series) for entry in detections.organs],
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=sources,
        content=report[0],
        series_instance_uid=generate_uid(),
        series_number=9000,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=model.name,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="Organ boxes",
    )


def write_dicom_sr(detections: Detections, files: Iterable[str | os.PathLike], path: str | os.PathLike) -> None:
    """Write the report of a series as a DICOM file; `files` are the series' images, of which only headers are read."""
    import pydicom

    report = dicom_sr(detections, [pydicom.dcmread(Path(file), stop_before_pixels=True) for file in files])
    with replacing(path) as draft:
        report.save_as(draft, enforce_file_format=True)


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise ImportError("DICOM reports need highdicom: pip install highdicom") from error
    return highdicom


def _identified(header: Dataset) -> Dataset:
    """The header with the UIDs that a reference needs.

    Some anonymisers blank SOP class and instance in the data set and leave them in the file meta information, where the
    standard wants the same values: those are taken.
    """
    import copy

    meta = getattr(header, "file_meta", {})
    header = copy.copy(header)
    for name, twin in (("SOPClassUID", "MediaStorageSOPClassUID"), ("SOPInstanceUID", "MediaStorageSOPInstanceUID")):
        uid = header.get(name) or meta.get(twin)
        if not uid:
            raise InputError(f"An image of the series has no {name}.", "A report cannot refer to it; export it again.")
        setattr(header, name, uid)
    for name in ("SeriesInstanceUID", "StudyInstanceUID"):
        if not header.get(name):
            raise InputError(f"The image {header.SOPInstanceUID} has no {name}.", "Export the series again.")
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, None)
    return header


def _check_sources(detections: Detections, sources: list[Dataset]) -> str:
    """Frame of reference of the one series that all headers belong to."""
    if not sources:
        raise InputError("The series has no images.", "Give all its files.")
    series = {str(header.SeriesInstanceUID) for header in sources}
    if len(series) > 1 or (detections.series_uid is not None and series != {detections.series_uid}):
        raise InputError(
            f"The images belong to {sorted(series)}, the boxes to {detections.series_uid}.",
            "Give the images of the one series in which the boxes were found.",
        )
    frames = {str(header.get("FrameOfReferenceUID", "")) for header in sources}
    if len(frames) > 1 or not all(frames):
        raise InputError(
            f"The series {series.pop()} has the frames of reference {sorted(frames)}.",
            "A report in patient mm needs exactly one.",
        )
    return frames.pop()


def _group(hd: Any, entry: OrganDetection, algorithm: Any, frame: str, series: Any) -> Any:
    """One organ: a volumetric ROI (TID 1411) if present, a plain group of evaluations (TID 1501) if absent."""
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    score = hd.sr.CodedConcept("score", _SCHEME, "Detection score")
    presence = hd.sr.CodedConcept("presence", _SCHEME, "Presence in the scan")
    reaches = hd.sr.CodedConcept("truncated", _SCHEME, "Reaches the end of the scan")
    present = entry.status == "present"
    evaluations = [hd.sr.QualitativeEvaluation(presence, codes.SCT.Present if present else codes.SCT.Absent)]
    evaluations += [
        hd.sr.QualitativeEvaluation(reaches, getattr(codes.SCT, face.capitalize())) for face in entry.truncated
    ]
    common = {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=generate_uid(), identifier=entry.organ),
        "finding_type": codes.SCT.Organ,
        "finding_sites": [_finding_site(hd, entry.organ)],
        "algorithm_id": algorithm,
        "qualitative_evaluations": evaluations,
    }
    if entry.score is not None:
        common["measurements"] = [hd.sr.Measurement(name=score, value=entry.score, unit=codes.UCUM.NoUnits)]
    if entry.box is None:
        return hd.sr.MeasurementsAndQualitativeEvaluations(**common)
    surface = hd.sr.VolumeSurface(
        graphic_type=hd.sr.GraphicTypeValues3D.POLYGON,
        graphic_data=_faces(entry.box),
        frame_of_reference_uid=frame,
        source_series=series,
    )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_volume_surface=surface, **common)


def _faces(box: OrientedBox) -> list[np.ndarray]:
    """Six closed polygons (5, 3) in LPS mm, which is DICOM's patient frame."""
    corners = box.corners()
    return [corners[[*face, face[0]]] for face in _FACES]


def _finding_site(hd: Any, organ: str) -> Any:
    """SNOMED CT code with laterality where pydicom's dictionary has the organ, else a private code."""
    from pydicom.sr.codedict import codes

    side = ORGANS[organ].side if organ in ORGANS else None
    bare = "_".join(word for word in organ.split("_") if word != side)
    if bare not in _SNOMED:
        return hd.sr.FindingSite(hd.sr.CodedConcept(organ, _SCHEME, title_of(organ)))
    laterality = {"left": codes.SCT.Left, "right": codes.SCT.Right, None: None}[side]
    return hd.sr.FindingSite(getattr(codes.SCT, _SNOMED[bare]), laterality=laterality)
