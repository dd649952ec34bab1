"""The rules that keep the tree readable, read from the source itself."""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "pretune": ROOT / "platform" / "pretune",
    "search_spaces": ROOT / "search_spaces",
    "trainers": ROOT / "trainers",
}
NAMES_OF_NOTHING = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}

LAYERS: dict[str, set[str]] = {
    # The platform. Each part may import search_spaces and trainers as well.
    "pretune": {"pretune.sweep", "pretune.request", "pretune.analysis", "pretune.display", "pretune.core"},
    "pretune.__main__": {"pretune.cli", "pretune.execution"},
    "pretune.cli": {
        "pretune.display",
        "pretune.request",
        "pretune.analysis",
        "pretune.sweep",
        "pretune.execution",
        "pretune.core",
    },
    "pretune.sweep": {"pretune.execution", "pretune.request", "pretune.core"},
    "pretune.display": {"pretune.analysis", "pretune.core"},
    "pretune.analysis": {"pretune.execution", "pretune.request", "pretune.core"},
    "pretune.execution": {"pretune.core"},
    "pretune.request": {"pretune.core"},
    "pretune.core": set(),
    # What may vary. Spaces and recipes may import trainers as well.
    "search_spaces": {
        "search_spaces.recipes",
        "search_spaces.regularizers",
        "search_spaces.kernels",
        "search_spaces.groups",
        "search_spaces.masking",
        "search_spaces.msbreg",
        "search_spaces.weights",
        "search_spaces.suggest",
    },
    "search_spaces.recipes": set(),
    "search_spaces.regularizers": {"search_spaces.kernels", "search_spaces.suggest"},
    "search_spaces.kernels": {"search_spaces.suggest"},
    "search_spaces.groups": {"search_spaces.suggest"},
    "search_spaces.masking": {"search_spaces.suggest"},
    "search_spaces.msbreg": {"search_spaces.suggest"},
    "search_spaces.weights": {"search_spaces.suggest"},
    "search_spaces.suggest": set(),
    # One run, from the loop down to what knows nothing of ours.
    "trainers": {"trainers.encoder"},
    "trainers.encoder": {
        "trainers.model",
        "trainers.data",
        "trainers.checkpoint",
        "trainers.report",
        "trainers.config",
        "trainers.upgrade",
    },
    "trainers.accumulation": {"trainers.model", "trainers.terms", "trainers.config"},
    "trainers.train": {
        "trainers.accumulation",
        "trainers.compiling",
        "trainers.sentinel",
        "trainers.evaluation",
        "trainers.objective",
        "trainers.operations",
        "trainers.model",
        "trainers.optim",
        "trainers.terms",
        "trainers.weights",
        "trainers.data",
        "trainers.saving",
        "trainers.checkpoint",
        "trainers.report",
        "trainers.config",
        "trainers.storage",
        "trainers.memory",
        "trainers.dist",
    },
    "trainers.compiling": {"trainers.config", "trainers.data"},
    "trainers.profiling": {
        "trainers.train",
        "trainers.compiling",
        "trainers.sentinel",
        "trainers.objective",
        "trainers.operations",
        "trainers.model",
        "trainers.optim",
        "trainers.terms",
        "trainers.data",
        "trainers.report",
        "trainers.config",
        "trainers.dist",
    },
    "trainers.saving": {"trainers.checkpoint", "trainers.report", "trainers.dist"},
    "trainers.sentinel": {"trainers.evaluation", "trainers.terms", "trainers.config", "trainers.dist"},
    "trainers.evaluation": {
        "trainers.weights",
        "trainers.encoder",
        "trainers.model",
        "trainers.backbones",
        "trainers.vit",
        "trainers.operations",
        "trainers.data",
        "trainers.checkpoint",
        "trainers.report",
        "trainers.config",
        "trainers.settings",
        "trainers.init_file",
        "trainers.storage",
        "trainers.files",
        "trainers.dist",
    },
    "trainers.weights": {
        "trainers.encoder",
        "trainers.checkpoint",
        "trainers.model",
        "trainers.backbones",
        "trainers.vit",
        "trainers.data",
        "trainers.config",
        "trainers.settings",
        "trainers.init_file",
        "trainers.files",
        "trainers.usercode",
    },
    "trainers.contracts": {
        "trainers.objective",
        "trainers.operations",
        "trainers.model",
        "trainers.masking",
        "trainers.terms",
        "trainers.config",
        "trainers.keyed_random",
        "trainers.dist",
        "trainers.usercode",
    },
    "trainers.model": {
        "trainers.compiling",
        "trainers.backbones",
        "trainers.vit",
        "trainers.masking",
        "trainers.terms",
        "trainers.config",
        "trainers.dist",
    },
    "trainers.backbones": {"trainers.settings", "trainers.usercode"},
    "trainers.operations": {"trainers.keyed_random", "trainers.settings", "trainers.usercode"},
    "trainers.vit": {"trainers.masking", "trainers.settings"},
    "trainers.masking": {"trainers.keyed_random", "trainers.settings"},
    "trainers.objective": {"trainers.dist", "trainers.terms", "trainers.usercode"},
    "trainers.optim": {"trainers.settings"},
    "trainers.data": {
        "trainers.config",
        "trainers.settings",
        "trainers.storage",
        "trainers.files",
        "trainers.upgrade",
    },
    "trainers.checkpoint": {
        "trainers.scratch",
        "trainers.report",
        "trainers.config",
        "trainers.storage",
        "trainers.files",
        "trainers.upgrade",
    },
    "trainers.report": {"trainers.storage"},
    "trainers.changes": {"trainers.arrival", "trainers.config", "trainers.upgrade", "trainers.usercode"},
    "trainers.arrival": {"trainers.config", "trainers.usercode"},
    "trainers.config": {"trainers.terms", "trainers.settings", "trainers.init_file", "trainers.usercode"},
    "trainers.terms": {
        "trainers.keyed_random",
        "trainers.settings",
        "trainers.upgrade",
        "trainers.usercode",
        "trainers.dist",
    },
    "trainers.settings": {"trainers.init_file", "trainers.upgrade", "trainers.usercode"},
    "trainers.init_file": {"trainers.storage", "trainers.usercode"},
    "trainers.upgrade": set(),
    "trainers.usercode": set(),
    "trainers.keyed_random": set(),
    "trainers.storage": {"trainers.files"},
    "trainers.files": set(),
    "trainers.scratch": set(),
    "trainers.memory": {"trainers.config"},
    "trainers.dist": set(),
}
"""Every arrow between parts that is allowed: what a part may import, in a function or for types as well. No others."""
PACKAGES_BELOW = {"pretune": {"search_spaces", "trainers"}, "search_spaces": {"trainers"}, "trainers": set[str]()}
UNKNOWN_TO = {
    "trainers": {"ray", "optuna"},
    "search_spaces": {"ray", "torch", "torchvision", "ffcv"},
    "pretune.core": {"ray", "torch", "torchvision", "ffcv", "rich", "typer"},
}
"""Libraries that a part never imports itself, wherever in its files."""
PRIVATE_TO_RAY = {"_private", "_raylet", "_internal", "internal_kv"}
USE_THEM = {
    "platform/pretune/execution/ray_private.py": "the one place",
    "tests/test_architecture.py": "gives the KubeRay manifest to the operator's own reader",
    "tests/chaos/__main__.py": "silences what Ray says of processes that are killed on purpose",
    "tests/chaos/clusters.py": "counts actors where no dashboard does",
    "tests/chaos/nodes.py": "announces, as a cloud would, that a machine goes",
}
"""Files that use names of Ray with such a part, which may change with each version, and why they must."""


def source_files(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def modules() -> dict[str, Path]:
    """Each module of ours by its dotted name."""
    found: dict[str, Path] = {}
    for package, folder in PACKAGES.items():
        for path in source_files(package):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(path: Path, known: Collection[str]) -> Iterator[tuple[str, int]]:
    """What a file imports anywhere, with the line: of `from a import b`, a.b where that is a module of ours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; name the module"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in known else str(node.module)), node.lineno


def part_of(module: str) -> str:
    """The first two steps of its name: `pretune.core.journal` belongs to `pretune.core`."""
    return ".".join(module.split(".")[:2])


def imported_roots(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno


def module_level_roots(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Imports that run when the module is imported: not those inside functions or under TYPE_CHECKING."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported_roots(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                pending.append(child)


def test_imports_follow_the_layers() -> None:
    known = modules()
    wrong: list[str] = []
    for module, path in known.items():
        part, package = part_of(module), module.partition(".")[0]
        assert part in LAYERS, f"{path.relative_to(ROOT)} belongs to no layer; add {part} to LAYERS"
        for target, line in imported_modules(path, known):
            root = target.partition(".")[0]
            allowed = (
                root in PACKAGES_BELOW[package] or part_of(target) in {part, *LAYERS[part]}
                if root in PACKAGES
                else root not in UNKNOWN_TO.get(part, set()) | UNKNOWN_TO.get(package, set())
            )
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, wrong


def test_the_layers_are_layers() -> None:
    TopologicalSorter(LAYERS).prepare()  # CycleError names the circle
    assert {part_of(module) for module in modules()} == set(LAYERS), "LAYERS names what there is"


def test_no_two_modules_import_each_other_even_in_functions() -> None:
    known = modules()
    graph = {
        module: {target for target, _ in imported_modules(path, known) if target in known and target != module}
        for module, path in known.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) >= len(known)  # CycleError names the circle


def test_no_file_of_the_platform_lies_outside_a_layer() -> None:
    flat = {path.name for path in PACKAGES["pretune"].glob("*.py")}
    assert flat == {"__init__.py", "__main__.py", "sweep.py"}


def private_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Parts of dotted names, imported or looked up, that are private to Ray."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [str(getattr(node, "module", ""))]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        else:
            continue
        yield from ((part, node.lineno) for name in names for part in name.split(".") if part in PRIVATE_TO_RAY)


def test_rays_private_names_are_used_in_one_place() -> None:
    folders = ("platform", "search_spaces", "trainers", "benchmarks", "tests")
    found = {
        str(path.relative_to(ROOT)): uses
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (uses := list(private_names(ast.parse(path.read_text()))))
    }
    elsewhere = [
        f"{path}:{line} uses {part}" for path, uses in found.items() if path not in USE_THEM for part, line in uses
    ]
    assert not elsewhere, f"ask Ray through platform/pretune/execution/ray_private.py: {elsewhere}"
    assert found.keys() == USE_THEM.keys(), "USE_THEM names a file that no longer uses any"


def test_only_the_worker_imports_torch_at_the_top_of_the_platform() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {root}"
        for path in source_files("pretune")
        if path.name != "worker.py"
        for root, line in module_level_roots(ast.parse(path.read_text()))
        if root in {"torch", "torchvision", "ffcv"}
    ]
    assert not wrong, wrong


def test_the_folder_named_platform_never_becomes_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "platform.py").exists()


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_folder_is_a_package_that_a_wheel_holds(package: str) -> None:
    folders = {path.parent for path in source_files(package)}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_module_is_named_after_nothing(package: str) -> None:
    assert not {path.stem for path in source_files(package)} & NAMES_OF_NOTHING


def test_the_pinned_versions_name_no_address() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in lines), lines


def test_the_cluster_file_passes_rays_own_schema() -> None:
    import jsonschema
    import ray.autoscaler
    import yaml

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["gpu_worker"]["min_workers"] == 0, "GPU workers must scale from zero"


# The fields that KubeRay 1.6 knows, of what the manifest may use.
RAY_CLUSTER_FIELDS = {
    "spec": {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "autoscalerOptions": {"idleTimeoutSeconds", "upscalingMode", "version", "env", "envFrom", "resources", "image"},
    "headGroupSpec": {"rayStartParams", "template", "serviceType"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template"},
}


def test_the_kuberay_manifest_passes_kubernetes_schema_and_is_read_by_rays_autoscaler() -> None:
    import jsonschema
    import kubernetes_validate
    import ray
    import ray.autoscaler
    import yaml
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    manifest = yaml.safe_load((ROOT / "cluster.kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    spec, head = manifest["spec"], manifest["spec"]["headGroupSpec"]
    (workers,) = spec["workerGroupSpecs"]
    for name, part in (
        ("spec", spec),
        ("autoscalerOptions", spec["autoscalerOptions"]),
        ("headGroupSpec", head),
        ("worker", workers),
    ):
        assert part.keys() <= RAY_CLUSTER_FIELDS[name], name
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == ray.__version__
    for group in (head, workers):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.37", strict=True)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())

    config = _derive_autoscaling_config_from_ray_cr(
        manifest | {"metadata": {"name": "pretune", "namespace": "default"}}
    )
    jsonschema.validate(config, json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text()))
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    worker = types["gpu-worker"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, 8)
    assert (worker["resources"]["CPU"], worker["resources"]["GPU"]) == (8, 1)


def test_the_tree_in_the_docs_names_every_module() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text()
    missing = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in source_files(package)
        if path.name != "__init__.py" and path.name not in tree
    ]
    assert not missing, f"add a line to the tree in docs/architecture.md: {missing}"
