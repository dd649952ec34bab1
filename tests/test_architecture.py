"""The rules that keep the tree readable, read from the source itself."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "pretune": ROOT / "platform" / "pretune",
    "search_spaces": ROOT / "search_spaces",
    "trainers": ROOT / "trainers",
}
NAMES_OF_NOTHING = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
FORBIDDEN = {
    "trainers": {"ray", "optuna", "pretune", "search_spaces"},
    "search_spaces": {"ray", "torch", "torchvision", "ffcv", "pretune"},
    "pretune": set[str](),
}


def source_files(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


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


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_point_down(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {root}"
        for path in source_files(package)
        for root, line in imported_roots(ast.parse(path.read_text()))
        if root in FORBIDDEN[package]
    ]
    assert not wrong, wrong


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


def test_the_readmes_tree_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in source_files(package)
        if path.name != "__init__.py" and path.name not in readme
    ]
    assert not missing, f"add a line to README.md's annotated tree: {missing}"
