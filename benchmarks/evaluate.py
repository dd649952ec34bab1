"""What `pretune eval` takes against what a user would write: the linear classifier over a grid of learning rates, and
kNN, on a frozen encoder.

The other side is what solo-learn (main_linear.py) and lightly (linear_eval.py and knn_eval.py of its ImageNet
benchmark) publish: one run for each learning rate, in which each epoch decodes and augments all images (random resized
crop, flip) in a torch `DataLoader` of torchvision's transforms, passes them through the frozen network, and trains a
linear head by SGD with momentum 0.9, batches of 256 and a cosine; the best rate is chosen on held-out images. kNN: a
pass over all images for a bank of features, then 20 neighbors with temperature 0.07. Both sides have the same images,
encoder, rates and epochs; times are by the clock, one side after the other, from an empty cache.

    python benchmarks/evaluate.py [--cifar10 FOLDER] [--images N] [--epochs E]     two to three minutes
    python benchmarks/evaluate.py --memory ROWS     peak memory of kNN and regression on ROWS x 2,048 features

FOLDER has train_*.npz and test.npz with `images` and `labels`; without it, images are drawn: ten colors with noise.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from trainers.config import TrialConfig
from trainers.data import datasets
from trainers.data.loader import Loaders
from trainers.encoder import Preparation
from trainers.evaluation import frozen
from trainers.evaluation.features import Rows, Store
from trainers.evaluation.neighbors import nearest
from trainers.evaluation.protocol import Data
from trainers.evaluation.protocols.knn import Knn
from trainers.evaluation.protocols.linear import Linear
from trainers.evaluation.regression import fit_linear
from trainers.evaluation.subject import Subject, untrained

RATES = Linear().learning_rates
PAPERS_EPOCHS = 100
"""Of the linear classifier in the papers."""
OUR_LBFGS, OUR_KNN, OUR_SGD = "L-BFGS", "kNN, features kept", "SGD, all rates at once"
BATCH = 256
WIDTH = 2048
"""Features of the memory's simulation."""
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--images", type=int, default=5000, help="to train on; half as many to score")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--memory", type=int, metavar="ROWS")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        if asked.memory:
            print(f"peak memory: {peak_of(Path(folder), asked.memory) / 2**30:.2f} GiB for {asked.memory:,} images")
            return
        compare(Path(folder), asked.cifar10, asked.images, asked.epochs)


class Side(NamedTuple):
    """One way to judge the encoder, one time."""

    seconds: float
    accuracy: float
    interval: tuple[float, float] | None = None


class Contest:
    """Images, an untrained encoder of them, and both sides' ways to judge it."""

    def __init__(self, folder: Path, cifar10: Path | None, count: int, epochs: int) -> None:
        self._folder, self._epochs = folder, epochs
        self.images = drawn(count) if cifar10 is None else cifar(cifar10, count)
        source = folder / "images.npz"
        np.savez(source, **self.images._asdict())
        self._dataset = datasets.build(
            "npz",
            source=[source],
            out=folder / "data",
            select_images=max(20, count // 10),
            arrays={name: name for name in Images._fields},
        )
        config = TrialConfig.model_validate(
            {
                "views": [{"size": 32}, {"size": 32}],
                "model": {"backbone": {"kind": "resnet_tiny", "width": 32}},
                "objective": {"alignment": {}},
            }
        )
        self._subject = untrained(config, Preparation(self._dataset.manifest.mean, self._dataset.manifest.std))
        self._loaders = Loaders()
        # Compiled, as on any later day.
        next(self._loaders.images(self._dataset, np.arange(4), size=32, batch_size=4, threads=2))

    def ours(self) -> dict[str, Side]:
        """Each linear classifier from an empty cache; kNN with the features that the first one has left there."""
        with tempfile.TemporaryDirectory(dir=self._folder) as cache:
            empty, other = (Store(Path(cache) / name) for name in ("first", "second"))
            return {
                OUR_LBFGS: self._judged(Linear(), "top1", empty),
                OUR_KNN: self._judged(Knn(neighbors=(20,)), "knn20/top1", empty),
                OUR_SGD: self._judged(Linear(solver="sgd", learning_rates=RATES, epochs=self._epochs), "top1", other),
            }

    def _judged(self, protocol: Linear | Knn, name: str, store: Store) -> Side:
        data = Data(self._dataset, "images", "report", self._loaders, store, threads=2)
        began = time.monotonic()
        found = protocol.run(self._subject, data, seeds=(0,), device=CPU, report=lambda what, done: None)
        seconds, score = time.monotonic() - began, found.score(name)
        return Side(seconds, score.value, score.interval)

    def theirs(self) -> dict[str, Side]:
        return {
            "SGD": timed(lambda: usual_linear(self._subject, self.images, self._epochs)),
            "kNN": timed(lambda: usual_knn(self._subject, self.images)),
        }


def rows(count: int = 1200, epochs: int = 1, runs: int = 5) -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: the linear classifier over a grid of learning rates, then kNN."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder), None, count, epochs)
        found = [(contest.ours(), contest.theirs()) for _ in range(runs)]
    images = f"{count:,} images"
    scaled = f"{images}; theirs {len(RATES)} rates, {PAPERS_EPOCHS} epochs, scaled from {epochs}"
    for name, mine, usual, note, times in (
        ("evaluation, L-BFGS", OUR_LBFGS, "SGD", scaled, PAPERS_EPOCHS / epochs),
        ("evaluation, SGD", OUR_SGD, "SGD", f"{images}, {len(RATES)} rates, {epochs} epoch(s) on both sides", 1.0),
        ("evaluation, kNN", OUR_KNN, "kNN", f"{images}, features kept from L-BFGS", 1.0),
    ):
        theirs = [times * there[usual].seconds for _, there in found]
        yield name, [ours[mine].seconds for ours, _ in found], theirs, note


def compare(folder: Path, cifar10: Path | None, count: int, epochs: int) -> None:
    """Prints each side's seconds, their ratio, and both accuracies on the same images."""
    contest = Contest(folder, cifar10, count, epochs)
    ours, theirs = contest.ours(), contest.theirs()
    print(f"{count:,} images, {len(contest.images.test_labels):,} scored, {epochs} epochs, {len(RATES)} learning rates")
    print("| ours | seconds | accuracy | 95 % | usual way | seconds | accuracy | ratio |")
    print("|:--|--:|--:|--:|:--|--:|--:|--:|")
    for name, mine in ours.items():
        usual = "kNN" if "kNN" in name else "SGD"
        other = theirs[usual]
        interval = "" if mine.interval is None else f"{mine.interval[0]:.3f} to {mine.interval[1]:.3f}"
        print(
            f"| {name} | {mine.seconds:.1f} | {mine.accuracy:.3f} | {interval} | {usual} | {other.seconds:.1f} | "
            f"{other.accuracy:.3f} | {other.seconds / mine.seconds:.1f} |"
        )
    whole, lbfgs = theirs["SGD"].seconds / epochs * PAPERS_EPOCHS, ours[OUR_LBFGS].seconds
    print(
        f"over the papers' {PAPERS_EPOCHS} epochs the usual way takes {whole:.0f} s: "
        f"{whole / lbfgs:.0f} times what L-BFGS takes"
    )


def timed(act: Callable[[], float]) -> Side:
    began = time.monotonic()
    found = act()
    return Side(time.monotonic() - began, found)


# --- the usual way ----------------------------------------------------------------------------------------------------


class Pictures(TorchDataset[tuple[Tensor, int]]):
    """Images as Pillow's, under torchvision's transforms, normalized as the subject's own."""

    def __init__(
        self, subject: Subject, images: NDArray[np.uint8], labels: NDArray[np.int64], *, augmented: bool = False
    ) -> None:
        from torchvision import transforms  # type: ignore[import-untyped]

        changes = [transforms.RandomResizedCrop(32), transforms.RandomHorizontalFlip()] if augmented else []
        normalize = transforms.Normalize(subject.mean, subject.std)
        self._images, self._labels = images, labels
        self._transform = transforms.Compose([transforms.ToPILImage(), *changes, transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self._transform(self._images[place]), int(self._labels[place])


def usual_linear(subject: Subject, given: Images, epochs: int) -> float:
    """Accuracy on the test images of the rate that is best on a tenth of the others."""
    held = len(given.images) // 10
    pictures = Pictures(subject, given.images[held:], given.labels[held:], augmented=True)
    train = DataLoader(pictures, BATCH, shuffle=True, num_workers=2)
    found = []
    for rate in RATES:
        torch.manual_seed(0)
        head = nn.Linear(width_of(subject), 10)
        optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
        for _ in range(epochs):
            for batch, classes in train:
                loss = nn.functional.cross_entropy(head(subject.encode(batch)), classes)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        scores = [
            accuracy(subject, head, Pictures(subject, *part))
            for part in ((given.images[:held], given.labels[:held]), (given.test_images, given.test_labels))
        ]
        found.append(scores)
    return max(found)[1]


@torch.no_grad()
def accuracy(subject: Subject, head: nn.Linear, pictures: Pictures) -> float:
    right = 0
    for batch, classes in DataLoader(pictures, BATCH, num_workers=2):
        right += int((head(subject.encode(batch)).argmax(1) == classes).sum())
    return right / len(pictures)


@torch.no_grad()
def usual_knn(subject: Subject, given: Images) -> float:
    def bank(pixels: NDArray[np.uint8], classes: NDArray[np.int64]) -> Tensor:
        pictures = Pictures(subject, pixels, classes)
        rows = [subject.encode(batch) for batch, _ in DataLoader(pictures, BATCH, num_workers=2)]
        return nn.functional.normalize(torch.cat(rows), dim=1)

    rows, queries = bank(given.images, given.labels), bank(given.test_images, given.test_labels)
    similarities, places = (queries @ rows.T).topk(20, dim=1)
    classes = torch.from_numpy(given.labels)[places]
    votes = torch.zeros(len(queries), 10).scatter_add_(1, classes, (similarities / 0.07).exp())
    return float((votes.argmax(1) == torch.from_numpy(given.test_labels)).double().mean())


def width_of(subject: Subject) -> int:
    return int(subject.encode(torch.zeros(1, 3, subject.size, subject.size)).shape[1])


# --- images -----------------------------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Images to fit on and to test, [n, 32, 32, 3], and their classes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def drawn(count: int) -> Images:
    """Ten colors under so much noise that a linear classifier errs."""
    generator = np.random.default_rng(0)
    colors = generator.integers(90, 166, (10, 3))

    def some(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = np.arange(number) % 10
        shades = colors[labels] + generator.normal(0, 12, (number, 3))
        pixels = shades[:, None, None] + generator.normal(0, 30, (number, 32, 32, 3))
        return pixels.clip(0, 255).astype(np.uint8), labels

    return Images(*some(count), *some(count // 2))


def cifar(folder: Path, count: int) -> Images:
    """The first images of CIFAR-10's parts."""
    parts = [np.load(path) for path in sorted(folder.glob("train_*.npz"))]
    images, labels = (np.concatenate([part[name] for part in parts])[:count] for name in ("images", "labels"))
    test = np.load(folder / "test.npz")
    half = count // 2
    return Images(images, labels.astype(np.int64), test["images"][:half], test["labels"][:half].astype(np.int64))


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_of(folder: Path, count: int, *, width: int = WIDTH, passes: Sequence[str] = ("knn", "linear")) -> int:
    """The process's peak resident bytes after kNN of 1,000 queries and a regression on `count` x `width` features in a
    file of float32.
    """
    path, generator = folder / "features.npy", np.random.default_rng(0)
    labels = torch.from_numpy(np.arange(count) % 10)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(file, header)
        offset = file.tell()
        for start in range(0, count, 10_000):
            rows = generator.standard_normal((min(10_000, count - start), width), dtype=np.float32)
            rows[:, :10] += np.eye(10, dtype=np.float32)[(start + np.arange(len(rows))) % 10]
            file.write(rows.tobytes())
    found = frozen.whole(Rows(path, count, width, np.dtype("<f4"), 10.0, offset))
    if "knn" in passes:
        queries = torch.from_numpy(found.some(np.arange(min(1000, count))).take())
        nearest((torch.from_numpy(part) for part in found.chunks()), queries, neighbors=200)
    if "linear" in passes:
        fit_linear(frozen.matrix(found, CPU), labels, class_count=10, regularization=1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
