"""The JSON Schema of detections.json (draft 2020-12), which the package ships."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from organdetr_monai.errors import InputError

__all__ = ["schema", "validate"]


def schema() -> dict[str, Any]:
    """The schema as plain data."""
    return json.loads(resources.files(__package__).joinpath("detections.schema.json").read_text(encoding="utf-8"))


def validate(document: Mapping[str, Any]) -> None:
    """Check a document that some tool wrote against the schema; needs ``jsonschema``.

    Raises
    ------
    InputError
        The first offence and where it stands.
    """
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if error is not None:
        raise InputError(f"{error.json_path}: {error.message}.", "See detections.schema.json.")
