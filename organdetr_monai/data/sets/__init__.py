"""One file for each public set: how its download lies on disk, and what its label values mean."""

from organdetr_monai.data.sets import abdomenct1k, amos, decathlon, folder, nnunet, totalsegmentator, verse, word
from organdetr_monai.data.sets.base import Case, Listing

#: Set name to the function that lists it: ``read(source, label_map) -> Listing``.
READERS = {
    module.__name__.rpartition(".")[2]: module.read
    for module in (abdomenct1k, word, totalsegmentator, amos, verse, nnunet, decathlon, folder)
}

__all__ = ["READERS", "Case", "Listing"]
