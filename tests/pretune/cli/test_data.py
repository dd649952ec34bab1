"""`pretune data`: a data set is written, described and verified."""

from __future__ import annotations

from pathlib import Path

from tests.pretune.cli.command import pretune
from trainers.data import datasets


def test_data_writes_a_data_set_and_says_what_is_in_it(here: Path) -> None:
    result = pretune("data", "digits", "--out", "mine", "--split-seed", "3")
    assert result.exit_code == 0, result.output
    dataset = datasets.open_dataset(here / "mine")
    assert dataset.manifest.split_seed == 3
    assert f"{dataset.train_count:,} images" in result.stdout
    assert "pretune sweep kernels --data mine" in result.stdout
    assert pretune("data", "digits", "--out", "mine", "--verify").exit_code == 0
    whole = (here / "mine" / "search.beton").read_bytes()
    (here / "mine" / "search.beton").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged = pretune("data", "digits", "--out", "mine", "--verify")
    assert damaged.exit_code == 2
    assert "search.beton" in damaged.stderr
