"""What we write, jsonschema accepts; what breaks the format, it refuses."""

from __future__ import annotations

import json

import jsonschema
import pytest

from organdetr_monai.errors import InputError
from organdetr_monai.writers.schema import schema, validate
from tests.results import OBLIQUE, STRAIGHT, make_result


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE])
def test_written_files_are_valid(tmp_path, affine):
    path = tmp_path / "detections.json"
    make_result(affine=affine, series_uid="1.2").save(path)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(path.read_text()), schema())
    validate(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("organ", "key", "value"),
    [
        (0, "status", "maybe"),
        (0, "score", 1.5),
        (0, "score", None),
        (0, "truncated", ["top"]),
        (0, "box_mm", {"min": [0, 0, 0]}),
        (0, "box_mm", None),
        (0, "box_voxel", [[0, 1], [2, 3]]),
        (0, "size_mm", [1, 1, -1]),
        (2, "box_mm", {"min": [0, 0, 0], "max": [1, 1, 1]}),  # absent
        (2, "truncated", ["left"]),
        (2, "id", 0),
    ],
)
def test_broken_documents_are_refused(organ, key, value):
    document = make_result().to_dict()
    document["organs"][organ][key] = value
    with pytest.raises(InputError, match=r"organs\[\d\]"):
        validate(document)


@pytest.mark.parametrize("key", schema()["required"])
def test_every_required_key_is_missed(key):
    document = make_result().to_dict()
    del document[key]
    with pytest.raises(InputError, match=key):
        validate(document)
