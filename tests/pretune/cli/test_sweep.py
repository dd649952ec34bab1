"""`pretune sweep`: what it refuses before anything starts. The sweep itself is tests/pretune/test_sweep.py's."""

from __future__ import annotations

from pathlib import Path

from tests.pretune.cli.command import pretune


def test_a_bucket_that_is_not_there_is_refused_before_anything_starts(here: Path, bucket: str) -> None:
    missing = bucket.replace("s3://bucket", "s3://nobody-has-this")
    result = pretune("sweep", "kernels", "--storage", missing)
    assert result.exit_code == 2, result.output
    assert "NO_SUCH_BUCKET" in result.stderr
    assert not (here / "sweeps").exists()


def test_a_broken_import_in_a_users_space_shows_its_own_line(here: Path) -> None:
    (here / "mine.py").write_text("import json\nfrom front_nowhere import thing\n")
    result = pretune("sweep", "mine.py:space")
    assert result.exit_code == 2
    assert "mine.py" in result.stderr
    assert "line 2" in result.stderr
    assert "from front_nowhere import thing" in result.stderr
