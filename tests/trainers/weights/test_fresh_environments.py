"""An export opens in an environment that was built a moment ago and holds one library, and nothing of ours.

Takes minutes and up to 6.5 GB for each, which are given back. Packages come from wherever pip is set to get them.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainers.weights import foreign
from tests.trainers.weights.test_exporting import exported, trained
from trainers.weights.folder import Layout

WITHOUT_US = "pretune trainers search_spaces"
OPENED: dict[Layout, tuple[tuple[str, ...], str, str]] = {
    "torchvision": (
        ("torch", "torchvision"),
        f"{WITHOUT_US} timm safetensors",
        "import sys; sys.path.insert(0, FOLDER)\nimport torch\nfrom model import load\n"
        "found = load()(torch.from_numpy(images)).detach().numpy()",
    ),
    "timm": (
        ("torch", "torchvision", "timm"),
        WITHOUT_US,
        "import timm, torch\nnetwork = timm.create_model('local-dir:' + FOLDER, pretrained=True).eval()\n"
        "found = network(torch.from_numpy(images)).detach().numpy()",
    ),
    "onnx": (
        ("onnxruntime",),
        f"{WITHOUT_US} torch timm",
        "import onnxruntime\nsession = onnxruntime.InferenceSession(FOLDER + '/model.onnx')\n"
        "(found,) = session.run(['features'], {'images': images})",
    ),
}
"""By format: what is installed, what must not be there, and what is typed."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("layout", OPENED)
def test_an_export_opens_where_there_is_nothing_but_its_library(tmp_path: Path, layout: Layout) -> None:
    packages, absent, program = OPENED[layout]
    run = trained({"kind": "resnet18", "stem": "imagenet" if layout == "timm" else "small"})
    exported(tmp_path / "export", run, layout)
    batch = foreign.images()
    np.save(tmp_path / "images.npy", batch.numpy())

    variables = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environment = tmp_path / "environment"
    pins = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in (*packages, "numpy")]
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    subprocess.run(install, check=True, env=variables)
    typed = (
        f"import importlib.util, numpy as np\nFOLDER = {str(tmp_path / 'export')!r}\n"
        f"there = [name for name in {absent.split()!r} if importlib.util.find_spec(name)]\nassert not there, there\n"
        f"images = np.load({str(tmp_path / 'images.npy')!r})\n{program}\n"
        f"np.save({str(tmp_path / 'found.npy')!r}, found)\n"
    )
    done = subprocess.run(
        [python, "-I", "-B", "-c", typed], capture_output=True, text=True, timeout=600, env=variables, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        seen = float(np.abs(np.load(tmp_path / "found.npy") - run.model.backbone(batch).numpy()).max())
    print(f"{layout}, with {', '.join(pins)} alone: largest difference {seen:.3g}")
    assert seen < 1e-5
