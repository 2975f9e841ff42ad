"""MONAI Label app for Organ-DETR bundles: the monaibundle app, with their own tasks in place of its general ones.

``python -m organdetr_monai.monai_label`` puts this file into an app's folder and the app's own ``main.py`` beside it,
as ``monaibundle_main.py``. Bundles of other projects in ``model/`` are served as before.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monaibundle_main
from monailabel.interfaces.app import MONAILabelApp


class OrganDetrApp(monaibundle_main.MyApp, MONAILabelApp):  # MONAI Label looks for its class among the direct bases
    """Serves the bundles that were named with ``--conf models``."""

    def init_infers(self) -> dict[str, Any]:
        """Inference tasks by name."""
        infers = super().init_infers()
        for name, path in self._organ_bundles():
            from organdetr_monai.monai_label.tasks import LesionInferTask, OrganInferTask

            infers[name] = (LesionInferTask if "deepgrow" in name else OrganInferTask)(path, self.conf)
        return infers

    def init_trainers(self) -> dict[str, Any]:
        """Training tasks by name; none if the server was started with ``--conf skip_trainers true``."""
        trainers = super().init_trainers()
        for name, path in self._organ_bundles():
            from organdetr_monai.monai_label.tasks import OrganTrainTask

            if "deepgrow" in name:
                trainers.pop(name, None)  # MONAI Label's own knows no instances
            elif name in trainers:
                trainers[name] = OrganTrainTask(path, self.conf)
        return trainers

    def _organ_bundles(self) -> Iterator[tuple[str, str]]:
        """Name and folder of each bundle that brings these tasks; makes its package importable."""
        for name, path in self.models.items():
            if (Path(path) / "organdetr_monai" / "monai_label" / "tasks.py").is_file():
                if path not in sys.path:
                    sys.path.insert(0, path)
                yield name, path
