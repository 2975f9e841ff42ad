"""On a GPU: frames per second and peak memory of paper-size inference and of a training step at batch 2, by precision.

The paper reports 22.7 frames/s at 224x224x96 and 38.5 GB in training (Organ-DETR; hardware of its own).
"""

from __future__ import annotations

import time

import torch
from build import network, targets, training_step
from measure import table
from torch import nn

from organdetr_monai.precision import amp_precision

SHAPE = (224, 224, 96)


def seconds(work, repeat: int = 10) -> tuple[float, float]:
    """Mean seconds of ``work`` and peak GiB, after three runs that do not count."""
    for _ in range(3):
        work()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeat, torch.cuda.max_memory_allocated() / 2**30


def by_part(net: nn.Module, image: torch.Tensor, repeat: int = 10) -> list[list[object]]:
    """Rows (part, ms, share) of a forward pass, by CUDA events."""
    from parts import parts

    marks: dict[str, list] = {name: [] for name in parts(net)}

    def mark(name: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        marks[name].append(event)

    for name, module in parts(net).items():
        module.register_forward_pre_hook(lambda *_, name=name: mark(name))
        module.register_forward_hook(lambda *_, name=name: mark(name))
    total = seconds(lambda: net(image), repeat)[0] * 1e3
    out = []
    for name, events in marks.items():
        pairs = list(zip(events[::2], events[1::2], strict=True))[-repeat:]
        ms = sum(a.elapsed_time(b) for a, b in pairs) / len(pairs)
        out.append([name, ms, ms / total])
    rest = total - sum(row[1] for row in out)
    return [*out, ["rest", rest, rest / total], ["all", total, 1.0]]


def rows() -> str:
    """The tables, or a line that says why there are none."""
    if not torch.cuda.is_available():
        return "\nNo GPU here: `python benchmarks/gpu.py` measures on a machine with one."
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    out = []
    for precision in ("float32", "float16", "bfloat16"):
        dtype = amp_precision(precision)
        net = network("paper").cuda().eval()
        image = torch.rand(1, 1, *SHAPE, device="cuda")

        @torch.inference_mode()
        def infer(net=net, image=image, dtype=dtype) -> None:
            with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
                net(image)

        spent, gib = seconds(infer)
        out.append(["inference, batch 1", precision, spent * 1e3, 1 / spent, gib])
    with torch.inference_mode():
        profile = by_part(network("paper").cuda().eval(), torch.rand(1, 1, *SHAPE, device="cuda"))
    again = {"network_def__backbone__checkpointing": True, "network_def__encoder__checkpointing": True}
    for precision, options in (("float32", {}), ("bfloat16", {}), ("bfloat16", again)):
        net = network("paper", **options).cuda()
        image, truth = torch.rand(2, 1, *SHAPE, device="cuda"), targets(SHAPE, batch=2, device="cuda")
        spent, gib = seconds(training_step(net, image, truth, amp_precision(precision)))
        name = f"{precision}, checkpointing" if options else precision
        out.append(["training step, batch 2", name, spent * 1e3, 2 / spent, gib])
    title = f"Paper size, {'x'.join(map(str, SHAPE))}, {torch.cuda.get_device_name()}, torch {torch.__version__}"
    text = table(title, ["", "precision", "ms", "volumes/s", "peak GiB"], out)
    return text + table("Forward by part, TF32", ["part", "ms", "share"], profile)


if __name__ == "__main__":
    print(rows())
