"""An encoder from a checkpoint gives the features that the probe judged, of a data set's images and of one's own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import trainers
from trainers import checkpoint
from trainers.changes import with_fields
from trainers.config import TrialConfig, ViewConfig
from trainers.data import datasets
from trainers.data.datasets import Dataset
from trainers.encoder import Encoder, load_encoder
from trainers.model import Model, build_model
from trainers.report import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return datasets.ensure_builtin("digits", tmp_path_factory.mktemp("encoder"))


def config(dataset: Dataset, **model: Any) -> TrialConfig:
    values = {
        "data": {"path": str(dataset.folder), "manifest": dataset.manifest_hash},
        "views": [{"size": SIZE}, {"size": SIZE}],
        "model": {"backbone": {"kind": "resnet_tiny", "width": 8}, "projector": {"widths": [12, 8]}, **model},
        "objective": {"alignment": {}, "mmd": {}},
    }
    return TrialConfig.model_validate(values)


class Trained(NamedTuple):
    model: Model
    config: TrialConfig
    saved: Checkpoint


def trained(folder: Path, dataset: Dataset, *, normalization: bool = True, **model: Any) -> Trained:
    """A network whose norms have seen something, and its checkpoint as a run of it would leave one."""
    made = config(dataset, **model)
    network = build_model(made).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    network.train()
    for _ in range(3):
        network.embed(torch.randn(32, 3, SIZE, SIZE, generator=generator))
    network.update_teacher(0, 10)
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.mul_(1.1)
    state = {"config": made.model_dump(mode="json"), "manifest": dataset.manifest_hash, "model": network.state_dict()}
    if normalization:
        names = ("mean", "std", "gray_white", "max_side")
        state["normalization"] = {name: getattr(dataset.manifest, name) for name in names}
    return Trained(network.eval(), made, checkpoint.save(folder, state, epoch=3))


def pixels_of(dataset: Dataset, ids: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Rows of the search file as bytes [height, width, 3], read with FFCV's own reader."""
    from ffcv.reader import Reader

    reader, content = Reader(str(dataset.search_file)), np.fromfile(dataset.search_file, np.uint8)
    rows = reader.metadata["f0"][ids]
    sizes = [(int(row["data_ptr"]), int(row["height"]), int(row["width"])) for row in rows]
    return [content[at : at + 3 * height * width].reshape(height, width, 3) for at, height, width in sizes]


def judged(run: Trained, dataset: Dataset, ids: np.ndarray[Any, Any], network: nn.Module | None = None) -> Any:
    """The features that the probe extracts."""
    from trainers.data.loader import Loaders
    from trainers.evaluation import probe

    def encode(images: Tensor) -> tuple[Tensor, ...]:
        return (run.model.encode(images) if network is None else network(images),)

    found = probe.extract(encode, ids, dataset=dataset, loaders=Loaders(), config=run.config, device=CPU)
    return found[0].numpy()


@pytest.mark.ffcv
def test_features_of_a_data_sets_images_equal_the_probes_bit_for_bit(tmp_path: Path, digits: Dataset) -> None:
    run = trained(tmp_path, digits)
    encoder = load_encoder(run.saved.path)
    ids = digits.select_ids[:300]  # more than a batch
    found = encoder.features(pixels_of(digits, ids))
    assert found.shape == (300, encoder.width) == (300, 32)
    assert found.dtype == np.float32
    assert np.array_equal(found, judged(run, digits, ids))


@pytest.mark.ffcv
def test_images_are_resampled_as_the_first_view_is_by_the_probe_and_the_encoder_alike(
    tmp_path: Path, digits: Dataset
) -> None:
    ids = digits.select_ids[:8]
    run = trained(tmp_path / "whole", digits)
    features = {}
    for kernel in ("bilinear", "bicubic"):
        # The digits are stored with 16 px: at 12 they are resized, and the kernel shows.
        views = ViewConfig(size=12, resampling=kernel), ViewConfig(size=12)
        changed = with_fields(run.config, views=views)
        state = {**checkpoint.load(run.saved), "config": changed.model_dump(mode="json")}
        saved = checkpoint.save(tmp_path / kernel, state, epoch=3)
        features[kernel] = load_encoder(saved).features(pixels_of(digits, ids))
        assert np.array_equal(features[kernel], judged(Trained(run.model, changed, saved), digits, ids))
    assert not np.array_equal(features["bilinear"], features["bicubic"])


@pytest.mark.ffcv
def test_the_same_code_is_compiled_for_a_data_sets_images_and_for_ones_own(tmp_path: Path, digits: Dataset) -> None:
    from trainers.data.loader import Loaders
    from trainers.data.views import render

    next(Loaders().images(digits, digits.select_ids[:4], size=SIZE, batch_size=4, threads=1))
    before = len(render.overloads)
    load_encoder(trained(tmp_path, digits).saved).features([np.zeros((20, 30, 3), np.uint8)])
    assert len(render.overloads) == before


@pytest.mark.ffcv
def test_jpegs_of_any_size_are_decoded_and_cropped_as_a_data_set_would(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(24):
        height, width = generator.integers(70, 300, 2)
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((int(width), int(height))).save(folder / f"{number:02d}.jpg", quality=90)
    dataset = datasets.build(
        "images", source=[tmp_path / "images"], out=tmp_path / "data", select_images=4, report_images=4
    )
    assert dataset.manifest.encoding == "jpeg"
    run = trained(tmp_path, dataset)
    stored = judged(run, dataset, np.arange(20))
    files = sorted((tmp_path / "images").rglob("*.jpg"))
    found = load_encoder(run.saved).features(files)
    # Which file is which row is the data set's affair: each row is that of one file, bit for bit.
    matches = [[bool(np.array_equal(row, other)) for other in found] for row in stored]
    assert [sum(match) for match in matches] == [1] * 20
    # A Pillow image of the same file is decoded by Pillow: close, no more.
    opened = load_encoder(run.saved).features([Image.open(file) for file in files])
    assert np.abs(opened - found).max() < 0.2 * found.std()


def test_a_tensor_in_0_to_1_and_one_of_bytes_give_the_features_of_the_same_images(
    tmp_path: Path, digits: Dataset
) -> None:
    encoder = load_encoder(trained(tmp_path, digits).saved)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    expected = torch.from_numpy(encoder.features(images))
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(tensor), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(tensor.float() / 255), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(encoder.mean, torch.tensor(digits.manifest.mean))
    assert torch.allclose(encoder.std, torch.tensor(digits.manifest.std))
    assert (encoder.size, encoder.width, encoder.training) == (SIZE, 32, False)
    with pytest.raises(ValueError, match=r"must have the shape \[n, 3, 16, 16\], but have \[5, 3, 8, 8\]"):
        encoder(torch.zeros(5, 3, 8, 8))


def test_images_are_prepared_as_those_of_the_data_set_were(tmp_path: Path, digits: Dataset) -> None:
    """A camera's 12 bits would be almost black by the usual range, and a large image has other pixels than a small."""
    manifest = digits.manifest.model_copy(update={"gray_white": 4095, "max_side": 24})
    encoder = load_encoder(trained(tmp_path, replace(digits, manifest=manifest)).saved)
    wide = np.random.default_rng(0).integers(0, 4096, (30, 60), dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    narrow = Image.fromarray(np.round(wide / 4095 * 255).astype(np.uint8)).convert("RGB")
    brought_down = narrow.resize((24, 12), Image.Resampling.LANCZOS)
    found = encoder.features([tmp_path / "wide.png", Image.open(tmp_path / "wide.png"), narrow, brought_down])
    assert all(np.array_equal(row, found[-1]) for row in found)


def test_an_encoder_can_be_trained_on_and_refuses_features_while_it_is(tmp_path: Path, digits: Dataset) -> None:
    encoder = load_encoder(trained(tmp_path, digits, teacher={}).saved, branch="teacher")
    encoder(torch.rand(2, 3, SIZE, SIZE)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    with pytest.raises(ValueError, match=r"in training mode; call encoder\.eval\(\)"):
        encoder.train().features([np.zeros((SIZE, SIZE, 3), np.uint8)])


def test_files_pillow_images_and_arrays_of_one_image_are_one_image(tmp_path: Path, digits: Dataset) -> None:
    encoder = load_encoder(trained(tmp_path, digits).saved)
    gray = np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    rows = encoder.features(
        [
            gray,
            np.repeat(gray[..., None], 3, 2),
            Image.fromarray(gray),
            tmp_path / "gray.png",
            str(tmp_path / "gray.png"),
        ]
    )
    assert np.array_equal(rows, np.repeat(rows[:1], 5, 0))
    assert encoder.features([]).shape == (0, 32)


def test_what_is_no_image_is_named(tmp_path: Path, digits: Dataset) -> None:
    encoder = load_encoder(trained(tmp_path, digits).saved)
    (tmp_path / "no.png").write_text("no image")
    blank = np.zeros((SIZE, SIZE, 3), np.uint8)
    wrong: list[tuple[Any, str]] = [
        ([blank, tmp_path / "no.png"], r"no\.png: broken image"),
        ([tmp_path / "none.png"], r"none\.png: the image cannot be read"),
        ([blank, torch.zeros(3, 4, 4)], r"images\[1\] must be a path, .* but is Tensor"),
        ([blank.astype(np.float32)], r"images\[0\]: images must be uint8"),
        ([np.zeros((SIZE, SIZE, 4), np.uint8)], r"images\[0\]: images must have the shape"),
        ("cat.png", r"put it into a list"),
        (Image.fromarray(blank), r"put it into a list"),
    ]
    for images, message in wrong:
        with pytest.raises(ValueError, match=message):
            encoder.features(images)


@pytest.mark.ffcv
def test_the_teacher_is_there_where_there_is_one(tmp_path: Path, digits: Dataset) -> None:
    run = trained(tmp_path / "with", digits, teacher={"momentum": 0.5})
    ids = digits.select_ids[:20]
    images = pixels_of(digits, ids)
    student, teacher = (load_encoder(run.saved, branch=branch).features(images) for branch in ("student", "teacher"))
    assert run.model.teacher is not None
    assert np.array_equal(teacher, judged(run, digits, ids, run.model.teacher["backbone"]))
    assert np.array_equal(student, judged(run, digits, ids))
    assert not np.array_equal(student, teacher)
    without = trained(tmp_path / "without", digits).saved
    with pytest.raises(ValueError, match=r"must hold a teacher for branch='teacher'.*take branch='student'"):
        load_encoder(without, branch="teacher")


def test_a_vision_transformers_encoder_is_read_too(tmp_path: Path, digits: Dataset) -> None:
    backbone = {"kind": "vit_micro", "patch_size": 4, "embed_dim": 32, "depth": 1}
    run = trained(tmp_path, digits, backbone=backbone, norm="layer")
    encoder = load_encoder(run.saved)
    images = torch.rand(3, 3, SIZE, SIZE)
    normalized = (images - encoder.mean[:, None, None]) / encoder.std[:, None, None]
    assert torch.equal(encoder(images), run.model.encode(normalized.to(memory_format=torch.channels_last)))


def test_a_checkpoint_is_known_by_its_path_by_a_uri_and_by_what_a_sweep_says(tmp_path: Path, digits: Dataset) -> None:
    saved = trained(tmp_path, digits).saved
    places: list[Checkpoint | Path | str] = [saved, saved.path, Path(saved.path), Path(saved.path).as_uri()]
    weights = [load_encoder(place).state_dict() for place in places]
    assert all(torch.equal(one[name], weights[0][name]) for one in weights for name in weights[0])


def test_a_damaged_checkpoint_is_refused_by_its_manifest_and_one_without_is_believed(
    tmp_path: Path, digits: Dataset
) -> None:
    run = trained(tmp_path, digits)
    alone = tmp_path / "elsewhere" / "mine.pt"
    alone.parent.mkdir()
    shutil.copy(run.saved.path, alone)
    assert load_encoder(alone).width == 32
    whole = Path(run.saved.path).read_bytes()
    Path(run.saved.path).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(checkpoint.DamagedError, match="is damaged or was replaced"):
        load_encoder(run.saved.path)
    with pytest.raises(checkpoint.DamagedError, match="must be a file, but there is none"):
        load_encoder(tmp_path / "epoch-0099.pt")


def test_an_older_checkpoint_finds_the_mean_of_its_images_in_its_data_set(tmp_path: Path, digits: Dataset) -> None:
    run = trained(tmp_path, digits, normalization=False)
    assert torch.allclose(load_encoder(run.saved).mean, torch.tensor(digits.manifest.mean))
    shutil.copytree(digits.folder, tmp_path / "moved")
    state = checkpoint.load(run.saved)
    state["config"]["data"]["path"] = str(tmp_path / "gone")
    for view in state["config"]["views"]:  # as this setting was called before 0.2
        view["flip"] = view.pop("flip_probability")
    lost = checkpoint.save(tmp_path / "lost", {**state, "format": 1}, epoch=1)
    with pytest.raises(ValueError, match=r"does not hold the mean of its images.*load_encoder\(…, data=FOLDER\)"):
        load_encoder(lost)
    assert torch.equal(load_encoder(lost, data=tmp_path / "moved").std, load_encoder(run.saved).std)
    other = datasets.build("digits", out=tmp_path / "other", split_seed=7)
    with pytest.raises(ValueError, match="the run was made for the data set"):
        load_encoder(lost, data=other.folder)


def test_a_run_leaves_the_mean_of_its_images_in_its_checkpoints(tmp_path: Path) -> None:
    from tests.trainers.test_train import MemoryDataset, Recorder, run
    from tests.trainers.test_train import config as memory_config

    recorder = Recorder()
    run(tmp_path, recorder, memory_config(epochs=1))
    encoder = load_encoder(recorder.checkpoint)
    assert torch.allclose(encoder.mean, torch.tensor(MemoryDataset.manifest.mean))
    assert torch.allclose(encoder.std, torch.tensor(MemoryDataset.manifest.std))


def test_the_package_shows_its_interface_and_nothing_else() -> None:
    assert dir(trainers) == trainers.__all__ == ["Encoder", "load_encoder"]
    assert trainers.load_encoder is load_encoder
    assert trainers.Encoder is Encoder
    with pytest.raises(AttributeError, match="'loader'"):
        trainers.loader  # type: ignore[attr-defined]  # noqa: B018


def test_code_that_a_file_names_as_its_network_is_run_where_it_is_trusted_alone(
    tmp_path: Path, digits: Dataset
) -> None:
    net = str(Path(__file__).parents[1] / "parts" / "own_parts.py") + ":Net"
    run = trained(tmp_path / "own", digits, backbone={"kind": net})
    with pytest.raises(ValueError, match=r"names code of its own as its network, .*own_parts\.py:Net.*--trust-code"):
        load_encoder(run.saved.path)
    assert load_encoder(run.saved.path, trust_code=True).width == load_encoder(run.saved).width

    ran = tmp_path / "ran"
    state = checkpoint.load(run.saved)
    state["config"]["model"]["backbone"] = {"kind": "os:mkdir", "path": str(ran)}
    state["config"]["objective"]["own"] = {"kind": "os:mkdir", "path": str(ran)}
    state["config"]["views"][0]["operations"] = {"own": {"kind": "os:mkdir", "path": str(ran)}}
    evil = checkpoint.save(tmp_path / "evil", state, epoch=1)
    with pytest.raises(ValueError, match="which would be run on this machine; nothing was"):
        load_encoder(evil.path)
    assert not ran.exists()


def test_a_checkpoint_whose_parts_do_not_belong_together_is_refused(tmp_path: Path, digits: Dataset) -> None:
    state = checkpoint.load(trained(tmp_path, digits).saved)
    config, model, known = state["config"], state["model"], state["normalization"]
    tiny = config["model"]["backbone"]
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"config": {}}, r"its config is none \(objective: Field required\)"),
        ({"config": [1]}, "its config is none"),
        ({"model": {**model, "more": torch.zeros(2)}}, r'its parameters .* \(.*Unexpected key\(s\) .*"more"'),
        ({"model": [1]}, "its parameters are not those"),
        (
            {"config": {**config, "model": {**config["model"], "backbone": {**tiny, "width": 16}}}},
            "its parameters are not those of its config .* size mismatch",
        ),
        (
            {"normalization": {**known, "mean": ["red"]}},
            "its images' mean and deviation are not three",
        ),
        ({"normalization": {"mean": known["mean"]}}, "its images' mean and deviation are not three"),
    )
    for number, (change, message) in enumerate(changes):
        saved = checkpoint.save(tmp_path / str(number), {**state, **change}, epoch=1)
        with pytest.raises(ValueError, match=rf"must be of a run of pretune, but {message}"):
            load_encoder(saved.path)
