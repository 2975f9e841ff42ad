"""The structured report, written through highdicom and read with pydicom alone."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from organdetr_monai.errors import InputError
from organdetr_monai.writers.dicom_sr import write_dicom_sr
from tests.results import OBLIQUE, SHAPE, STRAIGHT, make_result

pytest.importorskip("highdicom", reason="highdicom is an extra: pip install highdicom")

SERIES, STUDY, FRAME = (generate_uid(entropy_srcs=[name]) for name in ("series", "study", "frame"))
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"


@pytest.fixture
def series(tmp_path):
    """Headers of a CT series, as files; without pixels, which nobody needs here."""

    def build(*, without=(), **changes):
        files = []
        for z in range(SHAPE[2]):
            header = Dataset()
            header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[str(z)])
            header.SeriesInstanceUID, header.StudyInstanceUID, header.FrameOfReferenceUID = SERIES, STUDY, FRAME
            header.PatientID, header.PatientName, header.Modality = "P1", "Doe^J", "CT"
            header.PatientBirthDate = header.PatientSex = header.AccessionNumber = header.StudyID = ""
            header.StudyDate, header.StudyTime, header.ReferringPhysicianName = "20200101", "120000", ""
            header.ImagePositionPatient = [-30, -40, -50 + 3 * z]
            for key, value in changes.items():
                setattr(header, key, value)
            for key in without:
                delattr(header, key)
            header.file_meta = FileMetaDataset()
            header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            header.file_meta.MediaStorageSOPClassUID = CTImageStorage
            header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(z)])
            files.append(tmp_path / f"{z}.dcm")
            header.save_as(files[-1], enforce_file_format=True)
        return files

    return build


def walk(item):
    """All content items below one, depth first."""
    for child in item.get("ContentSequence", []):
        yield child
        yield from walk(child)


def meaning(item):
    return item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else None


def groups_of(report):
    """Content items of each organ, by its tracking identifier."""
    groups = [item for item in walk(report) if meaning(item) == "Measurement Group"]
    return {
        next(item.TextValue for item in walk(group) if meaning(item) == "Tracking Identifier"): group
        for group in groups
    }


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE])
def test_boxes_stand_in_patient_millimetres(tmp_path, series, affine):
    result = make_result(affine=affine, series_uid=str(SERIES))
    write_dicom_sr(result, series(), tmp_path / "out" / "report.dcm")
    report = pydicom.dcmread(tmp_path / "out" / "report.dcm")
    assert report.SOPClassUID == COMPREHENSIVE_3D_SR
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.PatientID, report.StudyInstanceUID) == ("P1", STUDY)
    assert report.SeriesInstanceUID != SERIES
    groups = groups_of(report)
    assert list(groups) == [entry.organ for entry in result.organs]
    for entry in result.present:
        surface = [item for item in walk(groups[entry.organ]) if item.ValueType == "SCOORD3D"]
        assert len(surface) == 6 and {item.GraphicType for item in surface} == {"POLYGON"}
        assert {item.ReferencedFrameOfReferenceUID for item in surface} == {FRAME}
        polygons = [np.reshape(item.GraphicData, (-1, 3)) for item in surface]
        for polygon in polygons:
            np.testing.assert_array_equal(polygon[0], polygon[-1])
            sides = np.linalg.norm(np.diff(polygon, axis=0), axis=1)  # edges of the box, no diagonals
            assert all(np.abs(entry.box.size - side).min() < 1e-3 for side in sides)
        points = np.concatenate(polygons)
        distances = np.linalg.norm(points[:, None] - entry.box.corners(), axis=-1)
        assert distances.min(axis=1).max() < 1e-3 and distances.min(axis=0).max() < 1e-3


def test_scores_sides_truncation_and_absence(tmp_path, series):
    write_dicom_sr(make_result(), series(), tmp_path / "report.dcm")
    groups = groups_of(pydicom.dcmread(tmp_path / "report.dcm"))
    told = {}
    for organ, group in groups.items():
        told[organ] = {}
        for item in walk(group):
            if item.ValueType == "NUM":
                told[organ][meaning(item)] = float(item.MeasuredValueSequence[0].NumericValue)
            elif item.ValueType == "CODE":
                told[organ].setdefault(meaning(item), []).append(item.ConceptCodeSequence[0].CodeMeaning)
    assert told["kidney_left"]["Detection score"] == pytest.approx(0.83)
    assert told["kidney_left"]["Finding Site"] == ["Kidney"] and told["kidney_left"]["Laterality"] == ["Left"]
    assert told["liver"]["Reaches the end of the scan"] == ["Right"]
    assert told["spleen"]["Presence in the scan"] == ["Absent"] and "Detection score" in told["spleen"]
    assert "Detection score" not in told["colon"]  # nothing was proposed
    assert told["portal_vein_and_splenic_vein"]["Finding Site"] == ["Portal and splenic vein"]
    assert not [item for item in walk(groups["spleen"]) if item.ValueType == "SCOORD3D"]


def test_instance_uids_blanked_in_the_data_set_are_taken_from_the_file_meta(tmp_path, series):
    write_dicom_sr(make_result(), series(SOPClassUID="", SOPInstanceUID=""), tmp_path / "report.dcm")
    report = pydicom.dcmread(tmp_path / "report.dcm")
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == SHAPE[2]
    assert {item.ReferencedSOPClassUID for item in evidence.ReferencedSOPSequence} == {CTImageStorage}


@pytest.mark.parametrize("name", ["SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_that_cannot_be_referred_to_is_refused(tmp_path, series, name):
    with pytest.raises(InputError, match="series"):
        write_dicom_sr(make_result(), series(**{name: ""}), tmp_path / "report.dcm")
    assert not (tmp_path / "report.dcm").exists()


def test_another_or_no_series_is_refused(tmp_path, series):
    with pytest.raises(InputError, match=r"1\.2\.3"):
        write_dicom_sr(make_result(series_uid="1.2.3"), series(), tmp_path / "report.dcm")
    with pytest.raises(InputError, match="no images"):
        write_dicom_sr(make_result(), [], tmp_path / "report.dcm")


def test_anonymised_series_without_patient_still_gets_its_report(series, tmp_path):
    files = series(without=("PatientID", "PatientName", "PatientSex", "StudyDate", "AccessionNumber"))
    write_dicom_sr(make_result(), files, tmp_path / "report.dcm")
    report = pydicom.dcmread(tmp_path / "report.dcm")
    assert not report.PatientID and report.StudyInstanceUID == STUDY
