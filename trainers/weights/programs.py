"""`model.py`: a program that builds a network of ours from torchvision or timm alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.model import STEMS
from trainers.settings import ResNetConfig, ViTConfig
from trainers.weights.folder import PROJECTOR, Description

_READ = '''

def tensors(file):
    """Those of a safetensors file: eight bytes of length, a header in JSON, the numbers."""
    content = bytearray(Path(file).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    kinds, found = {"F32": torch.float32, "I64": torch.int64}, {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            numbers = torch.frombuffer(content[start + begin : start + end], dtype=kinds[entry["dtype"]])
            found[name] = numbers.reshape(entry["shape"])
    return found
'''
_LOAD = '''

def load(folder=Path(__file__).parent):
    """The network with the weights in its folder, in evaluation mode."""
    network = build()
    network.load_state_dict(tensors(Path(folder) / "encoder.safetensors"), strict=True)
    return network.eval()
'''
_GROUP_NORM = "functools.partial(nn.GroupNorm, 1)"


def torchvision_program(found: Description) -> str:
    """Builds and loads it with torch and torchvision."""
    config = found.backbone
    imports = ["import torchvision"]
    if isinstance(config, ViTConfig):
        body = [
            "network = torchvision.models.VisionTransformer(",
            f"    image_size={found.built_size}, patch_size={config.patch_size}, num_layers={config.block_count}, "
            f"num_heads={config.head_count},",
            f"    hidden_dim={config.width}, mlp_dim={4 * config.width},",
            ")",
            "network.heads = nn.Identity()",
            "return network",
        ]
    elif isinstance(config, ResNetConfig) and config.kind == "resnet_tiny":
        return tiny_program(found)
    elif isinstance(config, ResNetConfig):
        layer = f", norm_layer={_GROUP_NORM}" if found.norm == "layer" else ""
        imports = ["import functools", *imports] if layer else imports
        body = [
            f"network = torchvision.models.{config.kind}(weights=None{layer})",
            *_stem(config),
            "network.fc = nn.Identity()",
            "return network",
        ]
    else:
        raise ValueError(f"torchvision has no {config.kind}; take --format timm or onnx")
    return _program(found, "torchvision", imports, body)


def timm_program(found: Description) -> str | None:
    """Builds and loads it with timm; None where `timm.create_model("local-dir:…")` does without."""
    config = found.backbone
    if not isinstance(config, ResNetConfig) or config.stem == "imagenet":
        return None
    if config.kind == "resnet_tiny":
        return tiny_program(found)
    layer = ', norm_layer="groupnorm1"' if found.norm == "layer" else ""
    body = [
        f'network = timm.create_model("{config.kind}", pretrained=False, num_classes=0{layer})',
        *_stem(config),
        "return network",
    ]
    return _program(found, "timm", ["import timm"], body)


def tiny_program(found: Description) -> str:
    """Our own small network, with torch alone."""
    config = found.backbone
    assert isinstance(config, ResNetConfig)
    norm = _GROUP_NORM if found.norm == "layer" else "nn.BatchNorm2d"
    w = config.width
    block = f'''

class Block(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x):
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, {w}, 3, 1, 1, bias=False), norm({w}), nn.ReLU())
        shapes = ({w}, {w}, 1), ({w}, {2 * w}, 2), ({2 * w}, {4 * w}, 2), ({4 * w}, {4 * w}, 1), ({4 * w}, {4 * w}, 1)
        self.stages = nn.Sequential(*(Block(*shape) for shape in shapes))

    def forward(self, images):
        return self.stages(self.stem(images)).mean(dim=(2, 3))
'''
    imports = ["import functools"] if found.norm == "layer" else []
    return _program(found, "torch", imports, ["return Network()"], before=f"\nnorm = {norm}\n{block}")


def projector_program(projector: nn.Sequential) -> str:
    """`projector.py`: features -> projections, with torch alone."""
    lines = [f"        {_layer(layer)}," for layer in projector]
    head = (
        '"""The projector: features [n, p] -> projections [n, q], with torch alone. Written by pretune."""\n\n'
        "import json\nfrom pathlib import Path\n\nimport torch\nfrom torch import nn\n"
    )
    build = "\n\ndef build():\n    return nn.Sequential(\n" + "\n".join(lines) + "\n    )\n"
    return head + build + _READ + _LOAD.replace("encoder.safetensors", PROJECTOR)


def _program(found: Description, library: str, imports: Sequence[str], body: Sequence[str], *, before: str = "") -> str:
    size = found.size
    head = (
        f'"""{found.backbone.kind} with {library} alone: normalized images [n, 3, {size}, {size}] -> features '
        f'[n, {found.width}]. Written by pretune."""\n\n'
    )
    plain = sorted([*(line for line in imports if "functools" in line), "import json", "from pathlib import Path"])
    plain.sort(key=lambda line: line.startswith("from"))
    others = sorted([*(line for line in imports if "functools" not in line), "import torch"])
    lines = "\n".join([*plain, "", *others, "from torch import nn"]) + "\n"
    build = "\n\ndef build():\n" + "\n".join(f"    {line}" for line in body) + "\n"
    return head + lines + before + build + _READ + _LOAD


def _stem(config: ResNetConfig) -> list[str]:
    if config.stem == "imagenet":
        return []
    assert config.stem != "auto"  # a description has it written out
    stem = STEMS[config.stem]
    lines = [f"network.conv1 = nn.Conv2d(3, 64, {stem.kernel}, {stem.stride}, {stem.padding}, bias=False)"]
    return lines if stem.pooled else [*lines, "network.maxpool = nn.Identity()"]


def _layer(layer: nn.Module) -> str:
    match layer:
        case nn.Linear():
            return f"nn.Linear({layer.in_features}, {layer.out_features}, bias={layer.bias is not None})"
        case _BatchNorm():  # ours, synchronized over workers, is one
            return f"nn.BatchNorm1d({layer.num_features}, affine={layer.affine})"
        case nn.LayerNorm():
            return f"nn.LayerNorm({layer.normalized_shape[0]}, elementwise_affine={layer.elementwise_affine})"
        case nn.GELU() | nn.ReLU():
            return f"nn.{type(layer).__name__}()"
    raise ValueError(f"a projector has no {type(layer).__name__}")  # a case is missing here
