"""Which precision the network runs in. Box arithmetic and losses are float32 whatever is chosen here."""

from __future__ import annotations

import torch


def amp_precision(name: str | None) -> torch.dtype | None:
    """Dtype for autocast by name, None for none; ``"float32"`` is none, for the command line, which cannot say None."""
    if name not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f'amp_dtype must be "float32", "bfloat16" or "float16", got {name!r}')
    return None if name in (None, "float32") else getattr(torch, name)
