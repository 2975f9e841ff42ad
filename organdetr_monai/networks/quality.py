"""How good a box is: a query's own estimate of its overlap with the organ, as a part of its score.

A class head is taught that every matched query shows its organ, however badly its box lies. Scores then rank cases by
how sure the class is, which for organs is always, and average precision asks for more: that better boxes score
higher. As in IoU-aware detectors (IoU-Net, Jiang et al. 2018; FCOS's centre-ness, Tian et al. 2019) a head of its own
estimates the IoU, and the score is the product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rated(logits: Tensor, quality: Tensor) -> Tensor:
    """Class logits whose softmax holds each organ's probability times the expected IoU of the box.

    What the organs lose goes to "no organ", so that the probabilities still add up to 1 and whoever reads logits needs
    to know nothing of the quality.

    Parameters
    ----------
    logits : Tensor of shape (..., K + 1)
        Index 0 is "no organ".
    quality : Tensor of shape (...)
        Logit of the expected IoU.

    Returns
    -------
    Tensor of shape (..., K + 1)
        Log-probabilities.
    """
    good, bad = F.logsigmoid(quality)[..., None], F.logsigmoid(-quality)[..., None]
    log_p = logits.log_softmax(-1) + good
    return torch.cat([torch.logaddexp(log_p[..., :1], bad), log_p[..., 1:]], dim=-1)
