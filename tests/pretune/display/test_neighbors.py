"""The picture of nearest neighbors: a row for each query, as PNG and as PDF."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretune.core.errors import RequestError
from pretune.display import neighbors
from pretune.display.neighbors import Row, Shown


def row(count: int, name: str = "a query.png") -> Row:
    def shown(value: int, similarity: float | None = None) -> Shown:
        return Shown(np.full((16, 16, 3), value, np.uint8), name, "cat $x_1$ 猫" if value % 2 else None, similarity)

    return Row(shown(200), [shown(10 * place + 1, 1 - place / 10) for place in range(count)])


def test_a_picture_has_a_row_for_each_query_and_a_column_for_each_neighbor() -> None:
    sizes = {}
    for rows, count in ((1, 1), (1, 5), (3, 5)):
        picture = neighbors.picture([row(count)] * rows, "png")
        with Image.open(io.BytesIO(picture)) as image:
            sizes[rows, count] = image.size
            assert image.format == "PNG"
    assert sizes[1, 5][0] > 2.5 * sizes[1, 1][0]
    assert sizes[3, 5][1] > 2.5 * sizes[1, 5][1]


def test_no_name_is_cut_off_at_the_edge() -> None:
    with Image.open(io.BytesIO(neighbors.picture([row(1, "W" * 40)], "png"))) as image:
        pixels = np.asarray(image.convert("L"))
    assert (pixels[:, [0, 1, -2, -1]] == 255).all()


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_equal_neighbors_make_equal_files_whatever_images_are_called(kind: str) -> None:
    rows = [row(2, "$\\frac{a}" + "long" * 40), row(0)]
    first = neighbors.picture(rows, kind)
    assert first == neighbors.picture(rows, kind)
    assert first.startswith(b"%PDF" if kind == "pdf" else b"\x89PNG")


def test_a_picture_that_is_there_is_replaced_only_where_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_text("mine")
    with pytest.raises(RequestError, match="add --overwrite"):
        neighbors.check_target(tmp_path / "there.png", overwrite=False)
    neighbors.check_target(tmp_path / "there.png", overwrite=True)
    neighbors.check_target(tmp_path / "new.PDF", overwrite=False)
