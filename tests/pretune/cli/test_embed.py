"""`pretune embed` on the command line."""

from __future__ import annotations

import errno
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretune.analysis import embed, projection
from pretune.display import image_map, neighbors
from tests.imports import imported
from tests.pretune.cli.command import pretune, synthetic_sweep


@pytest.fixture
def there(here: Path) -> Path:
    """A checkpoint's file, which nobody opens, and images."""
    (here / "run.pt").write_text("no checkpoint")
    for name in ("a.png", "pets/b.png", "pets/c.png"):
        (here / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(here / name)
    (here / "features.npz").write_text("mine")
    (here / "map.html").write_text("mine")
    (here / "notes.txt").write_text("no image")
    (here / "empty").mkdir()
    synthetic_sweep(here / "sweeps" / "known")
    return here


REFUSED = [
    ("run.pt", "either images or --data must be given, and not both"),
    ("run.pt a.png --data digits", "either images or --data must be given, and not both"),
    ("run.pt a.png", "features.npz is there already; add --overwrite"),
    ("run.pt a.png --out features.csv", "must end in .npz, .parquet or .safetensors"),
    ("run.pt a.png --out pets", "must end in"),
    ("run.pt a.png --out x.npz --map map.html", "map.html is there already; add --overwrite"),
    ("run.pt a.png --map map.pdf", "--map must end in .html"),
    ("run.pt a.png --neighbors a.png --picture x.gif", "--picture must end in .png or .pdf"),
    ("run.pt a.png --neighbors a.png --map x.html --method tsne", "--method must be one of pca, umap"),
    ("run.pt a.png --neighbors notes.txt", "notes.txt: not a complete tar file"),
    ("run.pt a.png --out run.pt/x.npz", "run.pt is a file"),
    ("run.pt a.png pets/b.png --out x.npz --map x.html", "--map takes at least 3 images, but there are 2"),
    ("run.pt a.png -k 3", "-k is of no use without --neighbors"),
    ("run.pt a.png --points 30", "--points is of no use without --map"),
    ("run.pt a.png --split select", "--split is of no use without --data"),
    ("run.pt --data digits --skip-broken 3%", "--skip-broken is of no use without IMAGE…"),
    ("run.pt a.png --out x.npz --skip-broken few", "must be a percentage"),
    ("run.pt a.png a.png --out x.npz", "named twice"),
    ("run.pt a.png empty --out x.npz", "must hold images"),
    ("run.pt nothing.png --out x.npz", "must exist, but nothing is there"),
    ("run.pt --data nowhere --out x.npz", "must be a folder that `pretune data` wrote"),
    ("run.pt --data digits --split unlabeled --out x.npz", "has none in its split 'unlabeled'"),
    ("nothing a.png --out x.npz", "there is no sweep 'nothing'"),
    ("known/7 a.png --out x.npz", "trial must be 0 to 2"),
    ("known a.png --out x.npz", "was never written"),
]


@pytest.mark.parametrize(("typed", "said"), REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_written(there: Path, typed: str, said: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}
    found = pretune("embed", *typed.split())
    assert found.exit_code == 2, found.output
    assert said in found.stderr
    assert before == {path: path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}


def test_files_that_are_no_images_are_all_listed(there: Path) -> None:
    for name in ("pets/d.jpg", "pets/e.png"):
        (there / name).write_text("no image")
    found = pretune("embed", "run.pt", "pets", "--out", "x.npz")
    assert found.exit_code == 2
    assert "2 of 4 are broken" in found.stderr
    assert "pets/d.jpg" in found.stderr
    assert "pets/e.png" in found.stderr


def test_more_queries_than_a_picture_has_rows_are_refused(there: Path) -> None:
    for number in range(51):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(there / "pets" / f"{number}.png")
    found = pretune("embed", "run.pt", "a.png", "--neighbors", "pets")
    assert found.exit_code == 2
    assert "at most 50 images, but 53 are named" in found.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_is_full_or_read_only_is_one_message(
    there: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(request: embed.Request, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(request.out))

    monkeypatch.setattr(embed, "run", run)
    found = pretune("embed", "run.pt", "a.png", "--out", "x.npz")
    assert found.exit_code == 1
    assert found.stderr.startswith("error: x.npz cannot be used")
    assert found.stderr.count("\n") == 1


def test_a_missing_extra_is_named(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, missing, typed, extra in (
        (image_map, "plotly", "--map x.html", "report"),
        (neighbors, "matplotlib", "--neighbors a.png", "report"),
        (projection, "umap", "--map x.html --method umap", "embed"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, "find_spec", lambda name, gone=missing: None if name == gone else find_spec(name))
            found = pretune("embed", "run.pt", "a.png", *typed.split())
        assert found.exit_code == 2
        assert f"pip install 'pretune[{extra}]'" in found.stderr


def test_a_request_is_refused_without_torch(there: Path) -> None:
    program = (
        "from typer.testing import CliRunner; from pretune.cli.app import app; "
        "found = CliRunner().invoke(app, ['embed', 'run.pt', 'a.png', 'pets', 'empty', '--out', 'x.npz']); "
        "assert found.exit_code == 2 and 'must hold images' in found.stderr, found.output"
    )
    assert imported(program, "torch ray ffcv numba sklearn matplotlib plotly") == []
