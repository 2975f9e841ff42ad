"""The JSON Schemas of detections.json and lesions.json (draft 2020-12), which the package ships."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from organdetr_monai.errors import InputError

__all__ = ["schema", "validate"]


def schema(name: str = "detections") -> dict[str, Any]:
    """The schema of ``detections`` or ``lesions`` as plain data."""
    return json.loads(resources.files(__package__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8"))


def validate(document: Mapping[str, Any], name: str = "detections") -> None:
    """Check a document that some tool wrote against the schema of that name; needs ``jsonschema``.

    Raises
    ------
    InputError
        The first offence and where it stands.
    """
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema(name))
    error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if error is not None:
        raise InputError(f"{error.json_path}: {error.message}.", f"See {name}.schema.json.")
