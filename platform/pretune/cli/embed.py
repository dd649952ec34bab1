"""`pretune embed`: images to features in a file, the nearest neighbors of some, a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from pretune.cli.exits import checking, fail, interrupted, note, print_json, refuse, running
from pretune.cli.options import STORAGE, Json, Storage, TrustCode, percent
from pretune.cli.progress import progress_bar
from pretune.core.errors import RequestError
from pretune.display import screen

if TYPE_CHECKING:
    from pretune.analysis.embed import Embedded, Request
    from pretune.analysis.projection import Method
    from pretune.display.image_map import Map
    from pretune.display.neighbors import Row

FEATURES, PICTURE = Path("features.npz"), Path("neighbors.png")
"""Where features and pictures lie unless it is said."""
NEIGHBORS, POINTS, MOST_POINTS = 10, 1000, 5000
SHOWN = 5
"""Neighbors of each query on the screen; the picture has all."""


def embed_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|SWEEP[/TRIAL]|FOLDER",
            help="a checkpoint's file or URI, a sweep (its best trial), one trial (NAME/3), or an export's folder",
        ),
    ],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE…", help="image files; folders, tars and zips of them")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="or a folder or URI with what `pretune data` wrote, or 'digits'")
    ] = None,
    split: Annotated[
        Literal["train", "select", "unlabeled", "report"] | None,
        typer.Option("--split", help="of --data; a read of `report` is counted; default: select"),
    ] = None,
    source: Annotated[
        str, typer.Option("--source", help="features, embedding, teacher; of a transformer class, mean, last4")
    ] = "features",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help=f".npz, .parquet or .safetensors; default: {FEATURES}, or none"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that are there already")] = False,
    neighbors: Annotated[
        list[Path] | None,
        typer.Option("--neighbors", metavar="IMAGE", help="show its nearest neighbors; may be given again"),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-k", min=1, max=100, help=f"with --neighbors: how many; default: {NEIGHBORS}")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help=f"with --neighbors: .png or .pdf; default: {PICTURE}"),
    ] = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", metavar="FILE.html", help="a map of the images: point at one to see it")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="with --map: pca or umap; default: pca")] = None,
    points: Annotated[
        int | None,
        typer.Option(
            "--points", min=3, max=MOST_POINTS, help=f"with --map: images on it, drawn at random; default: {POINTS}"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="with --map: of the draw, and of UMAP")] = None,
    skip_broken: Annotated[
        str | None,
        typer.Option("--skip-broken", metavar="N%", help="leave out images that do not decode; refused above N%"),
    ] = None,
    trust_code: TrustCode = False,
    storage: Storage = STORAGE,
    as_json: Json = False,
) -> None:
    """Images to features in a file, with their names and labels; nearest neighbors and a map to look at."""
    console = screen.console()
    with ExitStack() as stack:
        with checking():
            from pretune.analysis import embed, evaluate, projection
            from pretune.display import image_map
            from pretune.display import neighbors as pictures
            from trainers import scratch

            _check_use({"--split": split}, data is not None, "--data")
            _check_use({"-k": count, "--picture": picture}, bool(neighbors), "--neighbors")
            _check_use({"--method": method, "--points": points, "--seed": seed}, map_file is not None, "--map")
            _check_use({"--skip-broken": skip_broken}, bool(images), "IMAGE…")
            if bool(images) == (data is not None):
                raise RequestError("either images or --data must be given, and not both; name files, or a data set")
            way = projection.check(method or "pca")
            if neighbors:
                picture = picture or PICTURE
                pictures.check_target(picture, overwrite=overwrite)
            if map_file is not None:
                image_map.check_target(map_file, overwrite=overwrite)
            if out is None and not neighbors and map_file is None:
                out = FEATURES
            written = [path for path in (out, picture, map_file) if path is not None]
            _check_places(written)
            folder = stack.enter_context(scratch.folder())
            request = embed.Request(
                target=evaluate.find(target, storage, trust_code=trust_code),
                images=embed.named(images, folder, skipping=skip_broken is not None)
                if images
                else embed.of_data(str(data), split or "select"),
                source=source,
                out=out,
                overwrite=overwrite,
                queries=embed.named(neighbors, folder) if neighbors else None,
                count=count or NEIGHBORS,
                drawn=0 if map_file is None else points or POINTS,
                seed=seed or 0,
            )
            embed.check(request)
            if skip_broken is not None:
                request = embed.without_broken(request, percent(skip_broken))
                embed.check(request)
        try:
            with running(), progress_bar(console, "images") as advance:
                made = embed.run(request, progress=advance)
                if picture is not None:
                    _write(picture, pictures.picture(_rows(request, made), picture.suffix.lower()[1:]))
                if map_file is not None:
                    _write(map_file, image_map.page(_map(request, made, way)))
        except KeyboardInterrupt as error:
            interrupted("interrupted; no file is half written", error)
        except RequestError as error:
            refuse(str(error))
        except ValueError as error:
            fail(str(error))
    if as_json:
        print_json(_as_json(request, made, written))
        return
    _tell(console, request, made, written)


def _check_use(options: Mapping[str, Any], given: bool, needs: str) -> None:
    for option, value in options.items():
        if value is not None and not given:
            raise RequestError(f"{option} is of no use without {needs}; give that as well, or leave {option} out")


def _check_places(paths: Sequence[Path]) -> None:
    """RequestError where a file cannot be written."""
    from trainers.files import why_not_writable

    for path in paths:
        if why := why_not_writable(path.absolute().parent):
            raise RequestError(f"{path} cannot be written, as {why}; name another place")


def _write(path: Path, content: bytes | str) -> None:
    from trainers.files import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def _rows(request: Request, made: Embedded) -> list[Row]:
    """The picture's: each query and its neighbors."""
    from pretune.analysis.embed import THUMBNAIL
    from pretune.display.neighbors import Row, Shown

    assert request.queries is not None
    rows = []
    for query, found, pixels in zip(request.queries.names, made.nearest, made.query_thumbnails, strict=True):
        thumbnails = made.thumbnails([one.row for one in found], THUMBNAIL)
        rows.append(
            Row(
                Shown(pixels, query),
                [
                    Shown(its, request.name(one.row), request.label(one.row), one.similarity)
                    for one, its in zip(found, thumbnails, strict=True)
                ],
            )
        )
    return rows


def _map(request: Request, made: Embedded, method: Method) -> Map:
    from pretune.analysis import projection
    from pretune.analysis.embed import ON_A_MAP
    from pretune.display.image_map import Map

    rows = made.drawn.tolist()
    labels = request.labels
    versions = made.metadata["versions"]
    return Map(
        title=f"Images as {made.metadata['subject']} sees them",
        plane=projection.project(made.features, method, seed=request.seed),
        thumbnails=made.thumbnails(rows, ON_A_MAP),
        names=[request.name(row) for row in rows],
        labels=made.drawn * 0 - 1 if labels is None else labels[made.drawn],
        class_names=request.class_names if labels is not None else (),
        count=made.count,
        method=method,
        made=[
            f"{made.width:,} {made.metadata['source']} of {request.where}, digest "
            f"{made.metadata['digest'][:12]}, drawn with seed {request.seed}; pretune {versions['pretune']}, torch "
            f"{versions['torch']}"
        ],
    )


def _tell(console: Console, request: Request, made: Embedded, written: Sequence[Path]) -> None:
    from pretune.display import format, tables
    from pretune.display.screen import Rows

    for line in request.notes:
        note(console, line)
    if request.queries is not None:
        grid = Rows(["query", "similarity", "nearest", "class"], right=["similarity"])
        for query, found in zip(request.queries.names, made.nearest, strict=True):
            for place, one in enumerate(found[:SHOWN]):
                name = query if place == 0 else ""
                grid.add(name, f"{one.similarity:.3f}", request.name(one.row), request.label(one.row) or "")
        screen.show(console, grid)
    if made.not_finite:
        note(
            console,
            f"features of {made.not_finite:,} of {made.count:,} images are not finite: the network has diverged; take "
            "another checkpoint",
        )
    if made.recorded is not None:
        told = "was written down beside the data" if made.recorded else "could not be written down beside the data"
        note(console, f"the report split is to be read once; this read {told}")
    pace = made.count / max(made.seconds, 1e-9)
    console.print(
        f"{made.count:,} images, {made.width:,} {made.metadata['source']} each, "
        f"{format.duration(made.seconds)} ({pace:,.0f} images/s)",
        soft_wrap=True,
    )
    for path in written:
        console.print(Text(f"written to {tables.relative(path.absolute())}", style="dim"), soft_wrap=True)


def _as_json(request: Request, made: Embedded, written: Sequence[Path]) -> dict[str, Any]:
    queries = request.queries.names if request.queries is not None else []
    return {
        **made.metadata,
        "seconds": made.seconds,
        "not_finite": made.not_finite,
        "notes": list(request.notes),
        "neighbors": {
            query: [
                {"image": request.name(one.row), "class": request.label(one.row), "similarity": one.similarity}
                for one in found
            ]
            for query, found in zip(queries, made.nearest, strict=True)
        },
        "written": [str(path) for path in written],
    }
