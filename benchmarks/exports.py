"""The shipped model as PyTorch, TorchScript and ONNX: one window, and how far the answers lie apart.

``python benchmarks/exports.py [THREADS]`` exports both, then prints a table; each way in a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile

import torch
from measure import ROOT, in_own_process, peak_gib, table, timed

from organdetr_monai.detector import OrganDetector
from organdetr_monai.export import join_output
from organdetr_monai.export_file import export_model

SHIPPED = str(ROOT / "models" / "model.pt")
# Of the window, not divisible by any stride, smaller than one window of attention, longer than a window.
SHAPES = [(128, 64, 96), (50, 70, 90), (33, 47, 128), (17, 16, 31), (160, 64, 96)]


def answers(model: str) -> list[torch.Tensor]:
    """What a model says of one volume of noise, and of two at once, for each of `SHAPES`."""
    network = OrganDetector.load(model, device="cpu").network
    noise = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return [join_output(network(torch.rand(b, 1, *shape, generator=noise))) for shape in SHAPES for b in (1, 2)]


def compare(model: str) -> dict:
    """Export, and the largest differences of logits and boxes from the checkpoint; nothing to do for itself."""
    if model != SHIPPED:
        export_model(model)
    apart = [(a - b).abs() for a, b in zip(answers(SHIPPED), answers(model), strict=True)]
    logits, boxes = (max(float(d[:, part].max()) for d in apart) for part in (slice(-6), slice(-6, None)))
    return {"logits": logits, "boxes": boxes}


def measure(model: str, threads: str) -> dict:
    """Median milliseconds of one window and the most memory that the process held."""
    torch.set_num_threads(int(threads))
    detector = OrganDetector.load(model, device="cpu")
    image = torch.rand(1, 1, *detector.inferer.window, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wall, _ = timed(lambda: detector.network(image), repeat=15, warm=3)
    return {"ms": wall * 1e3, "gib": peak_gib()}


def rows(threads: int = 2) -> str:
    """The table. This process stays small: the peak of a process counts what it was started from."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        files = {"TorchScript": f"{folder}/model.ts", "ONNX Runtime": f"{folder}/model.onnx"}
        for name, model in {"PyTorch": SHIPPED, **files}.items():
            apart = in_own_process("exports.py", "--compare", model)
            got = in_own_process("exports.py", "--one", model, str(threads))
            ratio = got["ms"] / (out[0][1] if out else got["ms"])
            out.append([name, got["ms"], ratio, got["gib"], apart["logits"], apart["boxes"]])
    sizes = ", ".join("×".join(map(str, shape)) for shape in SHAPES)
    header = ["", "ms", "ratio", "peak GiB", "logits apart", "boxes apart"]
    title = f"Exports of the shipped model, one window, {threads} threads; largest differences over {sizes}"
    return table(title, header, out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compare"]:
        print(json.dumps(compare(*sys.argv[2:])))
    elif sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        print(rows(*map(int, sys.argv[1:])))
