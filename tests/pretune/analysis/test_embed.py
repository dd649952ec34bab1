"""`pretune embed`: the features are the encoder's own bit for bit, with the names and labels of their images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretune.analysis import embed
from pretune.analysis.embed import Request
from pretune.analysis.evaluate import Target
from pretune.core.errors import RequestError
from tests.pretune.cli.command import pretune
from trainers import checkpoint
from trainers.config import TrialConfig
from trainers.data import datasets, report_reads
from trainers.data.datasets import Dataset
from trainers.encoder import load_encoder
from trainers.model import build_model


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(embed, "_threads", lambda: 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return datasets.ensure_builtin("digits", tmp_path_factory.mktemp("embed"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Target:
    """A network with a teacher, as a run of it would leave one."""
    config = TrialConfig.model_validate(
        {
            "data": {"path": str(digits.folder), "manifest": digits.manifest_hash},
            "views": [{"size": 16}, {"size": 16}],
            "model": {
                "backbone": {"kind": "resnet_tiny", "width": 8},
                "projector": {"widths": [12, 8]},
                "teacher": {"momentum": 0.9},
            },
            "objective": {"alignment": {}, "mmd": {}},
        }
    )
    network = build_model(config)
    network.train()
    for _ in range(3):
        network.embed(torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    network.update_teacher(0, 10)
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.mul_(1.1)
    state: dict[str, Any] = {"config": config.model_dump(mode="json"), "manifest": digits.manifest_hash}
    state["model"] = network.state_dict()
    state["normalization"] = {
        name: getattr(digits.manifest, name) for name in ("mean", "std", "gray_white", "max_side")
    }
    saved = checkpoint.save(tmp_path_factory.mktemp("run"), state, epoch=3)
    return Target(name="mine/3", file=saved.path, checkpoint=saved)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of all sizes and kinds, in two folders."""
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> Any:
        return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    for number in range(7):
        noise(20 + number, 40 - 3 * number, 3).save(tmp_path / "pets/cat" / f"{number}.png")
    noise(90, 70, 3).save(tmp_path / "pets/dog/photo.jpg")
    noise(30, 30).save(tmp_path / "pets/dog/gray.png")
    wide = generator.integers(0, 65536, (16, 16)).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "pets/dog/wide.png")
    noise(20, 20, 4).save(tmp_path / "pets/dog/transparent.png")
    return tmp_path / "pets"


def test_features_of_files_are_the_encoders_bit_for_bit_with_paths_and_folders(
    target: Target, folder: Path, tmp_path: Path
) -> None:
    images = embed.named([folder], tmp_path)
    out = tmp_path / "new" / "features.npz"
    made = embed.run(Request(target, images, out=out))
    files = sorted(str(path) for path in folder.rglob("*.*"))
    assert len(files) == made.count == 11
    with np.load(out) as found:
        assert found["ids"].tolist() == files
        assert np.array_equal(found["features"], load_encoder(target.file).features(files))
        assert found["class_names"][found["labels"]].tolist() == [Path(path).parent.name for path in files]
        metadata = json.loads(str(found["metadata"]))
    assert metadata == made.metadata
    assert target.checkpoint is not None
    assert metadata["checkpoint_sha256"] == target.checkpoint.sha256
    assert (metadata["subject"], metadata["source"], metadata["size"]) == ("mine/3", "features", 16)
    assert torch.__version__.startswith(metadata["versions"]["torch"])


@pytest.mark.ffcv
def test_features_of_a_split_are_those_that_the_probe_judged(target: Target, digits: Dataset, tmp_path: Path) -> None:
    from trainers.data.loader import Loaders
    from trainers.evaluation import probe

    out = tmp_path / "features.npz"
    embed.run(Request(target, embed.of_data(str(digits.folder), "select"), out=out))
    encoder = load_encoder(target.file)
    judged = probe.extract(
        lambda images: (encoder.backbone(images),),
        digits.select_ids,
        dataset=digits,
        loaders=Loaders(),
        config=encoder.config,
        device=torch.device("cpu"),
    )
    with np.load(out) as found:
        assert np.array_equal(found["features"], judged[0].numpy())
        assert np.array_equal(found["ids"], digits.select_ids)
        assert np.array_equal(found["labels"], digits.search_labels()[digits.select_ids])
        assert tuple(found["class_names"]) == digits.manifest.class_names


@pytest.mark.ffcv
def test_a_read_of_the_report_split_is_written_down_and_a_running_sweep_has_none(
    target: Target, tmp_path: Path
) -> None:
    data = datasets.ensure_builtin("digits", tmp_path)
    of = embed.of_data(str(data.folder), "report")
    running = target._replace(sweep="/there/mine", trial=3, live=True)
    with pytest.raises(RequestError, match="must not depend on `report`"):
        embed.check(Request(running, of))
    assert report_reads.known(str(data.folder)) == []
    made = embed.run(Request(running._replace(live=False), of, out=tmp_path / "a.npz"))
    embed.run(Request(target, of, out=tmp_path / "b.npz"))
    assert made.recorded
    assert [(read.sweep, read.trial) for read in report_reads.known(str(data.folder))] == [
        ("/there/mine", 3),
        (target.file, None),
    ]
    with np.load(tmp_path / "a.npz") as found:
        assert found["ids"].tolist() == list(range(data.report_count))


def test_the_teacher_and_the_projector_are_other_sources(target: Target, folder: Path, tmp_path: Path) -> None:
    images = embed.named([folder / "cat"], tmp_path)
    found = {}
    for source in ("features", "embedding", "teacher"):
        out = tmp_path / f"{source}.npz"
        assert embed.run(Request(target, images, source=source, out=out)).metadata["source"] == source
        with np.load(out) as read:
            found[source] = read["features"]
            assert "labels" not in read
    files = [blob.path for blob in images.blobs]
    assert np.array_equal(found["teacher"], load_encoder(target.file, branch="teacher").features(files))
    assert not np.array_equal(found["teacher"], found["features"])
    assert found["embedding"].shape == (7, 8)
    with pytest.raises(RequestError, match="features, embedding, teacher"):
        embed.run(Request(target, images, source="class", out=tmp_path / "class.npz"))
    assert not (tmp_path / "class.npz").exists()


def test_neighbors_and_a_maps_images_are_taken_as_batches_go_by(
    target: Target, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.neighbors import NearestNeighbors

    from trainers.evaluation import embedding

    monkeypatch.setattr(embedding, "BATCH_SIZE", 4)
    images = embed.named([folder], tmp_path)
    own = tmp_path / "own.png"
    Image.fromarray(np.full((30, 20, 3), 99, np.uint8)).save(own)
    queries = embed.named([folder / "cat" / "2.png", own], tmp_path)
    made = embed.run(Request(target, images, queries=queries, count=3, drawn=5, seed=1))
    encoder = load_encoder(target.file)
    rows = encoder.features([blob.path for blob in images.blobs])
    peer = NearestNeighbors(n_neighbors=4, metric="cosine").fit(rows)
    _, wanted = peer.kneighbors(encoder.features([folder / "cat" / "2.png", own]))
    assert [[one.row for one in found] for found in made.nearest] == [wanted[0, 1:].tolist(), wanted[1, :3].tolist()]
    assert len(set(made.drawn.tolist())) == 5
    assert np.abs(made.features - rows[made.drawn]).max() < 1e-5
    assert [pixels.shape for pixels in made.thumbnails(made.drawn.tolist(), 64)] == [(64, 64, 3)] * 5
    assert (made.query_thumbnails[1] == 99).all()
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.ffcv
def test_thumbnails_of_a_data_set_are_its_images(target: Target, digits: Dataset) -> None:
    from ffcv.reader import Reader

    made = embed.run(Request(target, embed.of_data(str(digits.folder), "select"), drawn=3))
    (one,) = made.thumbnails([5], 16)
    stored = Reader(str(digits.search_file)).metadata["f0"][digits.select_ids[5]]
    start, side = int(stored["data_ptr"]), int(stored["height"])
    pixels = np.fromfile(digits.search_file, np.uint8)[start : start + 3 * side * side].reshape(side, side, 3)
    assert side == 16
    assert np.array_equal(one, pixels)


def test_all_broken_images_are_listed_and_what_was_there_stays(target: Target, folder: Path, tmp_path: Path) -> None:
    for name in ("dog/photo.jpg", "cat/big.jpg"):
        noise = np.random.default_rng(1).integers(0, 256, (120, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "features.parquet"
    out.write_text("mine")
    request = Request(target, embed.named([folder], tmp_path), out=out, overwrite=True)
    with pytest.raises(RequestError, match=r"2 of 12 are broken[\s\S]*big\.jpg[\s\S]*photo\.jpg"):
        embed.run(request)
    assert out.read_text() == "mine"
    sound = embed.without_broken(request, 20)
    assert embed.run(sound).metadata["skipped"] == [str(folder / "cat/big.jpg"), str(folder / "dog/photo.jpg")]
    assert any("2 broken images were left out" in note for note in sound.notes)


def test_a_file_is_replaced_only_where_that_was_asked_for(target: Target, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    out.write_text("mine")
    request = Request(target, embed.named([folder], tmp_path), out=out)
    with pytest.raises(RequestError, match="add --overwrite"):
        embed.check(request)
    embed.check(replace(request, overwrite=True))
    embed.run(replace(request, overwrite=True))
    assert np.load(out)["features"].shape == (11, 32)


def test_features_that_are_not_finite_are_told(
    target: Target, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = checkpoint.load(checkpoint.find(target.file))
    state["model"] = {
        name: value * torch.nan if name == "backbone.stem.0.weight" else value for name, value in state["model"].items()
    }
    diverged = checkpoint.save(tmp_path, state, epoch=1)
    monkeypatch.chdir(tmp_path)
    done = pretune("embed", diverged.path, "pets", "--out", "x.npz")
    assert done.exit_code == 0, done.output
    assert "features of 11 of 11 images are not finite: the network has diverged" in " ".join(done.stdout.split())


def test_a_damaged_checkpoint_is_refused(target: Target, folder: Path, tmp_path: Path) -> None:
    assert target.checkpoint is not None
    other = target.checkpoint.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(RequestError, match="damaged or was replaced"):
        embed.run(Request(target._replace(checkpoint=other), embed.named([folder], tmp_path)))


def test_the_command_writes_features_a_picture_and_a_map_and_replaces_nothing(
    target: Target, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["embed", target.file, "pets", "--out", "new/f.npz", "--neighbors", "pets/cat/0.png", "-k", "2"]
    command += ["--map", "map.html", "--points", "5", "--picture", "near.pdf"]
    done = pretune(*command)
    assert done.exit_code == 0, done.output
    assert "11 images, 32 features each" in done.stdout
    assert done.stdout.count("pets/") == 3, "a query and its two neighbors"
    before = {path: path.read_bytes() for path in map(Path, ("new/f.npz", "near.pdf", "map.html"))}
    assert before[Path("near.pdf")].startswith(b"%PDF")
    assert b"5 of 11 images, drawn at random" in before[Path("map.html")]
    again = pretune(*command)
    assert again.exit_code == 2
    assert "is there already; add --overwrite" in again.stderr
    assert {path: path.read_bytes() for path in before} == before
    replaced = pretune(*command, "--overwrite", "--json")
    assert replaced.exit_code == 0, replaced.output
    record = json.loads(replaced.stdout)
    assert [one["class"] is not None for one in record["neighbors"]["pets/cat/0.png"]] == [True, True]
    assert record["written"] == ["new/f.npz", "near.pdf", "map.html"]
    assert Path("new/f.npz").read_bytes() == before[Path("new/f.npz")], "equal features make equal files"
