"""MIQ-SAM3D and its baselines, trained for the same time on the same lesions, and compared: a Markdown table.

``python benchmarks/lesions.py FOLDER --minutes 20``. By default the CT is simulated from the KiTS23 masks beside this
project, for experiments only; ``--datalist`` names other lesions. Interrupted at any moment the same command goes on;
``--slice 150`` ends after that many seconds by itself. What is counted is explained in
``organdetr_monai/miq_sam3d/metrics.py`` and ``robustness.py``; every test case has a JSON of its own in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import ROOT, machine, table
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import Tensor, nn

from organdetr_monai.allocation import keep_freed_memory
from organdetr_monai.data.augmentation import RandIntensityd
from organdetr_monai.data.cache import SampleDataset
from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing
from organdetr_monai.miq_sam3d.baselines import SemanticBaseline, SingleObjectBaseline
from organdetr_monai.miq_sam3d.datalist import kind_names, load_lesions
from organdetr_monai.miq_sam3d.inference import ClickInferer
from organdetr_monai.miq_sam3d.loading import SPACING, case_transforms
from organdetr_monai.miq_sam3d.losses import MIQLoss
from organdetr_monai.miq_sam3d.matching import InstanceMatcher
from organdetr_monai.miq_sam3d.prompts import TISSUE, RandPromptd
from organdetr_monai.miq_sam3d.robustness import Answer, ask_about, summarise
from organdetr_monai.miq_sam3d.simulate import simulate_kits
from organdetr_monai.miq_sam3d.training import collate, prepare_batch
from organdetr_monai.precision import amp_precision
from organdetr_monai.sampling import EpochSampler
from organdetr_monai.training import fast_precision, parameter_groups

WINDOW = (64, 64, 64)
WARM_UP = 0.05  # of the budget
BACKGROUND_CLICKS = 3  # in each test case
KITS = ROOT.parent / "shared" / "data" / "kits23"


def configured() -> ConfigParser:
    """The training config of MIQ-SAM3D."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/miq_sam3d/train.json"))
    return parser


class PromptedInstances(nn.Module):
    """MIQ-SAM3D as its training config builds it, with the interface of the baselines."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        parser = configured()
        parser["num_kinds"] = kinds
        self.network = parser.get_parsed_content("network_def")
        self.cost, self.inferer = MIQLoss(InstanceMatcher()), ClickInferer(WINDOW)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Output of the network."""
        return self.network(*prepare_batch(batch)[0])

    def loss(self, output: dict[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """Cost of the answers."""
        return self.cost(output, prepare_batch(batch)[1])["loss"]

    def open(self, image: Tensor, spacing: Sequence[float]) -> Answer:
        """Answers about an image (1, X, Y, Z), encoded once."""
        self.eval()
        encodings = self.inferer.encodings(image, self.network)
        return lambda click, kind: self.inferer.answer(image, click[None], self.network, encodings=encodings).labels


class Contender(NamedTuple):
    """How a method is trained and tested; a step of each sees two windows."""

    build: Callable[[], nn.Module]
    batch: int
    #: Of the clicks in training; a remote one has two windows.
    remote: float
    #: Clicks on background in each test case.
    background: int
    #: Whose training it takes, if not one of its own.
    training: str | None = None


def contenders(kinds: int) -> dict[str, Contender]:
    """All methods by name."""
    return {
        "MIQ-SAM3D": Contender(lambda: PromptedInstances(kinds), 1, 1.0, BACKGROUND_CLICKS),
        "one click, one mask": Contender(lambda: SingleObjectBaseline(WINDOW), 2, 0.0, BACKGROUND_CLICKS),
        # It is told the kind, and knows of no click.
        "segmentation, components": Contender(lambda: SemanticBaseline(kinds, WINDOW), 2, 0.0, 0),
        "segmentation, kind at the click": Contender(
            lambda: SemanticBaseline(kinds, WINDOW, told=False), 2, 0.0, BACKGROUND_CLICKS, "segmentation, components"
        ),
    }


class Training:
    """A contender and how far its training is, in a file."""

    def __init__(self, folder: Path, contender: Contender, learning_rate: float) -> None:
        torch.manual_seed(0)
        self.path, self.model, self.batch = folder / "training.pt", contender.build(), contender.batch
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, lr=learning_rate))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step, self.seconds = 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            try:
                self.model.load_state_dict(state["model"])
            except RuntimeError as error:
                raise InputError(f"{self.path} is of another network.", f"Remove {folder} to train it anew.") from error
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the file anew."""
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replacing(self.path) as draft:
            torch.save({**parts, "step": self.step, "seconds": self.seconds}, draft)

    def run(self, data: SampleDataset, budget: float, until: float) -> bool:
        """Train until `budget` CPU-seconds are used up, or the clock says `until`; whether it was the former."""
        self.model.train()
        dtype = amp_precision(fast_precision("cpu"))
        batches, saved = self.batches(data), time.monotonic()
        while self.seconds < budget and time.monotonic() < until:
            start = time.process_time()
            batch = next(batches)
            done = self.seconds / budget
            scale = min(done / WARM_UP, 1) * 0.5 * (1 + math.cos(math.pi * min(done, 1))) if self.step else 0.01
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * scale
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                output = self.model(batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.model.loss(output, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self.seconds += time.process_time() - start
            if self.step % 50 == 0:
                print(
                    f"  step {self.step}, {self.seconds / 60:.1f} min: loss {float(loss.detach()):.3f}", file=sys.stderr
                )
            if time.monotonic() > saved + 60:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.seconds >= budget

    def batches(self, data: SampleDataset) -> Iterator[dict[str, Any]]:
        """Batches from where the training is; the same ones whether or not it was interrupted."""
        sampler, each = EpochSampler(len(data), batch_size=self.batch), len(data) // self.batch
        while True:
            epoch, k = divmod(self.step, each)
            sampler.set_epoch(epoch)
            data.set_epoch(epoch)
            yield collate([data[i] for i in list(sampler)[k * self.batch : (k + 1) * self.batch]])


def _folder_name(method: str) -> str:
    return method.replace(", ", "_").replace(" ", "_")


def prepared(items: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Cases on the working grid, computed once and mapped from a file."""
    if not path.exists():
        load = Compose(case_transforms())
        cases = [load(item) for item in items]
        with replacing(path) as draft:
            torch.save(cases, draft)
    return torch.load(path, mmap=True, weights_only=False)


def judge(model: nn.Module, case: Mapping[str, Any], background: int) -> dict[str, Any]:
    """All clicks on a case, and the answers' figures."""
    image = case["image"].as_tensor()
    spacing = [SPACING] * 3
    start = time.perf_counter()
    answer = model.open(image, spacing)
    ids, tissue = case["instances"].as_tensor()[0].numpy(), image[0].numpy() > TISSUE
    found = ask_about(answer, ids, case["kinds"].tolist(), spacing, tissue=tissue, background=background)
    return {"case": case["case"], **found, "seconds": time.perf_counter() - start}


def write(path: Path, content: Any) -> None:
    """Write JSON, null where a figure is not defined."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(_replaced(content, lambda x: None if x != x else x), indent=1), encoding="utf-8")


def read(path: Path) -> Any:
    """Read JSON, NaN for null."""
    return _replaced(json.loads(path.read_text(encoding="utf-8")), lambda x: math.nan if x is None else x)


def _replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, change) for item in value]
    return change(value)


def report(results: Mapping[str, dict[str, Any]], minutes: float, train: int, test: int) -> str:
    """The table."""
    header = [
        "method",
        "steps",
        "union Dice",
        "NSD",
        "recall",
        "false positives",
        "PQ",
        "Dice over clicks",
        "sd",
        "worst",
    ]
    rows = []
    for name, r in results.items():
        spread = r["robustness"]
        figures = [r["union_dice"], r["union_nsd"], r["lesion_recall"], r["false_positives"], r["pq"]]
        figures += [spread["mean"], spread["sd"], spread["worst"], r["agreement"], r["silent"]]
        rows.append([name, r["steps"], *("none" if math.isnan(f) else f"{f:.3f}" for f in figures)])
    title = f"{minutes:g} CPU minutes of training each on {train} patients, {test} test patients"
    return table(title, [*header, "agreement", "silent on background"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is not done yet; 0 once the table is complete."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    until = time.monotonic() + (options.slice or math.inf)
    datalist = options.datalist or simulate_kits(options.source, options.folder / "ct", workers=1)
    items = {split: load_lesions(datalist, split=split, check_files=False) for split in ("train", "test")}
    train = prepared(items["train"][: options.train], options.folder / f"train_{options.train}.pt")
    test = prepared(items["test"][: options.test], options.folder / f"test_{options.test}.pt")
    results = {}
    methods = contenders(len(kind_names(datalist)))
    asked = configured()["asked"]  # the baselines do not look at it
    unknown = set(options.methods) - set(methods)
    if unknown:
        raise InputError(f"There is no method {sorted(unknown)}.", f"Choose among {list(methods)}.")
    for name in options.methods or methods:
        contender = methods[name]
        folder = options.folder / f"{options.minutes:g}" / _folder_name(name)
        if (folder / f"result_{len(test)}.json").exists():
            results[name] = read(folder / f"result_{len(test)}.json")
            continue
        prompts = RandPromptd(WINDOW, remote=contender.remote, asked=asked)
        sampling = [prompts, RandIntensityd(["image", "exemplar"])]
        data = SampleDataset(train, Compose(sampling), cache_rate=0.0)
        trained = folder.with_name(_folder_name(contender.training)) if contender.training else folder
        training = Training(trained, contender, options.learning_rate)
        print(f"{name}: {training.seconds / 60:.1f} of {options.minutes:g} CPU minutes", file=sys.stderr)
        if not training.run(data, options.minutes * 60, until):
            return 3
        for case in test:
            path = folder / "test" / f"{case['case']}.json"
            if not path.exists():
                if time.monotonic() > until:
                    return 3
                write(path, judge(training.model, case, contender.background))
        found = summarise([read(folder / "test" / f"{case['case']}.json") for case in test])
        results[name] = {**found, "steps": training.step, "cpu_minutes": training.seconds / 60}
        write(folder / f"result_{len(test)}.json", results[name])
    print(machine())
    print(report(results, options.minutes, len(train), len(test)))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU minutes of training for each method")
    parser.add_argument("--source", type=Path, default=KITS, help="folder of the KiTS23 masks")
    parser.add_argument("--datalist", type=Path, help="lesions to use instead")
    parser.add_argument("--train", type=int, default=120, help="at most so many patients to train on")
    parser.add_argument("--test", type=int, default=20, help="at most so many patients to test on")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--methods", nargs="*", default=[], help="names in the table; all by default, one after another"
    )
    parser.add_argument("--slice", type=float, help="seconds after which to stop; exit code 3: start again to go on")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
