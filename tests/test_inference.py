"""Windows: one box for each organ, whole where it can be, joined where it must be."""

import numpy as np
import pytest
import torch

from organdetr_monai.inference import DetectionInferer, best_queries, merge_windows


class OracleNetwork(torch.nn.Module):
    """Reads the boxes of organs from an image whose voxel values are organ ids: a perfect detector of what its window
    shows.
    """

    def __init__(self, num_classes: int, queries: int = 8) -> None:
        super().__init__()
        self.num_classes, self.queries = num_classes, queries

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        size = torch.tensor(image.shape[2:], dtype=torch.float32)
        logits = torch.zeros(len(image), self.queries, self.num_classes + 1)
        logits[..., 0] = 8.0
        boxes = torch.full((len(image), self.queries, 6), 0.5)
        for b, volume in enumerate(image[:, 0]):
            for k in range(1, self.num_classes + 1):
                where = (volume == k).nonzero()
                if len(where):
                    start, stop = where.amin(0), where.amax(0) + 1
                    boxes[b, k] = torch.cat([(start + stop) / 2 / size, (stop - start) / size])
                    logits[b, k, k] = 12.0
        return {"logits": logits, "boxes": boxes}


def place(volume: torch.Tensor, k: int, box: tuple) -> None:
    volume[0, 0, box[0] : box[3], box[1] : box[4], box[2] : box[5]] = k


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_long_volume_gives_one_exact_box_for_each_organ(overlap):
    volume = torch.zeros(1, 1, 20, 24, 150)
    truth = {
        1: (2, 3, 5, 10, 9, 20),
        2: (4, 4, 41, 12, 20, 57),
        3: (1, 1, 130, 19, 23, 150),
        4: (8, 10, 10, 11, 14, 140),
    }
    for k, box in truth.items():
        place(volume, k, box)
    (prediction,) = DetectionInferer((20, 24, 40), overlap=overlap, window_batch=3)(volume, OracleNetwork(4))
    assert prediction["labels"].tolist() == [1, 2, 3, 4]
    for k, box in truth.items():  # organ 4 is three windows long
        assert np.allclose(prediction["boxes"][k - 1], box, atol=1e-3), k
    assert (prediction["scores"] > 0.9).all()


def test_volume_of_the_window_size_is_one_pass():
    calls = []
    network = OracleNetwork(2)
    network.register_forward_hook(lambda *_: calls.append(1))
    volume = torch.zeros(1, 1, 16, 16, 16)
    place(volume, 1, (1, 2, 3, 8, 9, 10))
    (prediction,) = DetectionInferer((16, 16, 16))(volume, network)
    assert len(calls) == 1 and prediction["boxes"][0].tolist() == pytest.approx([1, 2, 3, 8, 9, 10], abs=1e-4)


def test_small_volume_is_padded_and_boxes_stay_inside():
    volume = torch.zeros(1, 1, 10, 12, 9)
    place(volume, 1, (1, 2, 3, 8, 12, 9))
    (prediction,) = DetectionInferer((16, 16, 16))(volume, OracleNetwork(2))
    assert prediction["boxes"][0].tolist() == pytest.approx([1, 2, 3, 8, 12, 9], abs=1e-4)


def test_two_volumes_are_two_predictions():
    volume = torch.zeros(2, 1, 16, 16, 24)
    place(volume[:1], 1, (1, 1, 1, 5, 5, 5))
    place(volume[1:], 1, (3, 4, 5, 9, 9, 20))
    both = DetectionInferer((16, 16, 16))(volume, OracleNetwork(1))
    for i in range(2):
        (alone,) = DetectionInferer((16, 16, 16))(volume[i : i + 1], OracleNetwork(1))
        assert torch.equal(both[i]["boxes"], alone["boxes"])


def test_whole_organ_beats_a_surer_piece():
    boxes = np.array([[0, 0, 30.0, 10, 10, 40], [0, 0, 30, 10, 10, 52]])
    starts = np.array([[0, 0, 0], [0, 0, 20]])
    score, box = merge_windows(np.array([0.99, 0.8]), boxes, starts, (10, 10, 40), (10, 10, 60))
    assert box.tolist() == [0, 0, 30, 10, 10, 52] and score == 0.8


def test_unsure_continuation_is_not_joined():
    boxes = np.array([[0, 0, 30.0, 10, 10, 40], [0, 0, 35, 10, 10, 60]])
    starts = np.array([[0, 0, 0], [0, 0, 20]])
    _, box = merge_windows(np.array([0.9, 0.1]), boxes, starts, (10, 10, 40), (10, 10, 80))
    assert box.tolist() == [0, 0, 30, 10, 10, 40]


def test_organ_is_found_although_no_query_calls_it_its_first_choice():
    logits = torch.tensor([[[5.0, 1.0, 0.0], [5.0, 3.0, 0.0], [5.0, 0.0, 0.0]]])
    boxes = torch.arange(18.0).view(1, 3, 6) / 18
    scores, best = best_queries({"logits": logits, "boxes": boxes}, (10, 10, 10))
    assert scores[0, 0] == pytest.approx(logits[0, 1].softmax(-1)[1].item())
    assert best[0, 0, 0] == pytest.approx((boxes[0, 1, 0] - boxes[0, 1, 3] / 2).item() * 10, abs=1e-4)


def test_overlap_is_checked():
    with pytest.raises(ValueError, match="1.0"):
        DetectionInferer((8, 8, 8), overlap=1.0)
