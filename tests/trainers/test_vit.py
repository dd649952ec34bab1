"""The masked vision transformer: what enters it, what it costs, and what it equals (DILEMMA, 6-8, 17, 20, 21)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainers.config import TrialConfig
from trainers.masking import Mask
from trainers.model import Model, build_model
from trainers.objective import Objective
from trainers.terms import Outputs
from trainers.vit import encode_patches, sine_positions

SIDE, PATCHES = 16, 16


def trial(masking: Any, *, sizes: tuple[int, ...] = (SIDE, SIDE), model: Any = None, **changes: Any) -> TrialConfig:
    values: dict[str, Any] = {
        "views": [{"size": size} for size in sizes],
        "model": {
            "backbone": {"kind": "vit_micro", "patch_size": 4, "embed_dim": 32, "depth": 2, **(model or {})},
            "projector": {"widths": [16, 8]},
            "teacher": {},
            "masking": masking,
        },
        "objective": {"alignment": {}},
    }
    return TrialConfig.model_validate({**values, **changes})


def images(size: int = SIDE, count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(model: Model, *views: Tensor, step: int = 0) -> Outputs:
    outputs: Outputs = model(views, torch.arange(len(views[0])), 0, step)
    return outputs


def lengths_entering(branch: nn.Module) -> list[int]:
    seen: list[int] = []
    branch.get_submodule("blocks.0").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    return seen


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 16), (0.5, 8), (0.75, 4)])
def test_the_student_sees_the_kept_patches_and_teacher_and_evaluation_see_all(ratio: float, kept: int) -> None:
    model = build_model(trial({"drop_ratio": ratio, "mismatch_probability": 0.2}))
    assert model.teacher is not None
    student, teacher = lengths_entering(model.backbone), lengths_entering(model.teacher.get_submodule("backbone"))
    outputs = run(model, images(), images(seed=1))
    assert (student, teacher) == ([kept + 1] * 2, [PATCHES + 1] * 2)
    assert [tuple(patches.tokens.shape) for patches in outputs.patches] == [(4, kept, 32)] * 2
    student.clear()
    model.eval()
    with torch.no_grad():
        model.encode(images())
        model.embed(images())
    assert student == [PATCHES + 1] * 2


def test_local_crops_stay_dense_unless_all_views_are_masked() -> None:
    for views, expected in (("largest", [9, 5]), ("all", [9, 3])):
        model = build_model(trial({"drop_ratio": 0.5, "views": views}, sizes=(SIDE, 8)))
        student = lengths_entering(model.backbone)
        outputs = run(model, images(), images(8))
        assert student == expected
        assert [patches.view for patches in outputs.patches] == ([0] if views == "largest" else [0, 1])


@pytest.mark.parametrize("size", [16, 8, 24])
@pytest.mark.parametrize("positions", ["learned", "fixed"])
def test_with_nothing_dropped_or_mismatched_it_is_the_plain_transformer(size: int, positions: str) -> None:
    """In whatever order: attention knows places by their embeddings alone."""
    model = build_model(trial(None, model={"positions": positions})).double()
    view = images(size, dtype=torch.float64)
    count = (size // 4) ** 2
    order = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    plain: Any = model.backbone
    expected = plain.forward_features(view)
    for kept in (torch.arange(count).expand(4, -1), order):
        class_token, tokens = encode_patches(plain, view, Mask(kept, kept, kept[:, :0]))
        torch.testing.assert_close(class_token, expected[:, 0], rtol=0, atol=1e-10)
        rows = torch.arange(4)[:, None]
        torch.testing.assert_close(tokens, expected[rows, 1 + kept], rtol=0, atol=1e-10)
    torch.testing.assert_close(model.encode(view), expected[:, 0], rtol=0, atol=1e-10)


def some_mask(kept_count: int = 6) -> Mask:
    generator = torch.Generator().manual_seed(4)
    order = torch.stack([torch.randperm(PATCHES, generator=generator) for _ in range(4)])
    told = torch.stack([torch.randperm(PATCHES, generator=generator)[:kept_count] for _ in range(4)])
    return Mask(order[:, :kept_count], told, order[:, kept_count:])


def test_each_patch_brings_its_own_content_to_the_place_it_is_told() -> None:
    """A picture whose patches were moved to where the mask says, and the rest ignored, as an independent reference."""
    model = build_model(trial(None)).double()
    backbone: Any = model.backbone
    mask, view = some_mask(), images(dtype=torch.float64)
    class_token, tokens = encode_patches(backbone, view, mask)
    for row in range(4):
        patches = [view[row, :, 4 * (p // 4) : 4 * (p // 4) + 4, 4 * (p % 4) : 4 * (p % 4) + 4] for p in mask.kept[row]]
        weight, bias = backbone.patch_embed.proj.weight, backbone.patch_embed.proj.bias
        content = torch.stack([(weight * patch).sum((1, 2, 3)) + bias for patch in patches])
        place = torch.stack([backbone.pos_embed[0, 1 + int(p)] for p in mask.told[row]])
        sequence = torch.cat([backbone.cls_token[0] + backbone.pos_embed[0, :1], content + place])
        expected = backbone.norm(backbone.blocks(sequence[None]))[0]
        torch.testing.assert_close(torch.cat([class_token[row : row + 1], tokens[row]]), expected, rtol=0, atol=1e-10)


def test_the_order_of_kept_patches_does_not_matter() -> None:
    backbone = build_model(trial(None)).double().backbone
    mask, view = some_mask(), images(dtype=torch.float64)
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
    class_token, tokens = encode_patches(backbone, view, mask)
    again, moved = encode_patches(backbone, view, Mask(mask.kept[:, shuffled], mask.told[:, shuffled], mask.dropped))
    torch.testing.assert_close(again, class_token, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved, tokens[:, shuffled], rtol=0, atol=1e-12)


def test_without_position_embeddings_it_can_not_know_what_it_was_told() -> None:
    backbone: Any = build_model(trial(None)).double().backbone
    with torch.no_grad():
        backbone.pos_embed.zero_()
    mask, view = some_mask(), images(dtype=torch.float64)
    _, tokens = encode_patches(backbone, view, mask)
    _, honest = encode_patches(backbone, view, Mask(mask.kept, mask.kept, mask.dropped))
    assert torch.equal(tokens, honest)


def started_as(scheme: str, **changes: Any) -> Any:
    """A transformer of width 192 with patches of 48 numbers, in its initial state."""
    sizes = {"kind": "vit_tiny", "patch_size": 4, "initialization": scheme, **changes}
    return build_model(trial(None, model=sizes, sizes=(SIDE,), objective={"mmd": {}})).backbone


def is_uniform(matrix: Tensor, bound: float) -> None:
    """Extremes, deviation and mean of a uniform law in ±bound, as far as so many draws tell."""
    matrix, count = matrix.detach(), matrix.numel()
    assert bound * (1 - 20 / count) < float(matrix.abs().max()) <= bound * (1 + 1e-6)
    assert float(matrix.std()) == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(count))
    assert abs(float(matrix.mean())) < 5 * bound / math.sqrt(3 * count)


def is_normal(matrix: Tensor, deviation: float) -> None:
    matrix, count = matrix.detach(), matrix.numel()
    assert float(matrix.std()) == pytest.approx(deviation, rel=5 / math.sqrt(count))
    assert abs(float(matrix.mean())) < 5 * deviation / math.sqrt(count)
    assert float(matrix.abs().max()) > 2 * deviation  # a uniform law of this deviation ends at 1.73


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    assert len(found) == 12 * 4
    assert all(layer.bias is not None and not layer.bias.any() for layer in found.values())
    return found


def test_moco_v3_starts_uniform_by_true_fans_and_query_key_and_value_apart() -> None:
    network = started_as("moco_v3")
    for name, layer in linear_layers(network).items():
        parts = layer.weight.chunk(3) if name.endswith("qkv") else [layer.weight]
        for matrix in parts:
            is_uniform(matrix, math.sqrt(6 / sum(matrix.shape)))
    is_uniform(network.patch_embed.proj.weight, math.sqrt(6 / (3 * 4 * 4 + 192)))
    assert not network.patch_embed.proj.bias.any()
    is_normal(network.cls_token, 1e-6)
    # Together the three would have had 2 / 4 of the variance.
    assert float(network.blocks[0].attn.qkv.weight.detach().std()) == pytest.approx(math.sqrt(2 / (2 * 192)), rel=0.02)


def test_mae_starts_uniform_with_patches_as_a_linear_layer() -> None:
    network = started_as("mae", positions="fixed")
    layers = linear_layers(network)
    assert len(layers) >= 4
    for layer in layers.values():
        is_uniform(layer.weight, math.sqrt(6 / sum(layer.weight.shape)))
    is_uniform(network.patch_embed.proj.weight, math.sqrt(6 / (3 * 4 * 4 + 192)))
    is_uniform(network.patch_embed.proj.bias, 1 / math.sqrt(3 * 4 * 4))  # a convolution's: their code leaves it so
    is_normal(network.cls_token, 0.02)


def test_maes_decoder_starts_uniform_with_a_normal_mask_token() -> None:
    values = {
        "model": {
            **trial({"drop_ratio": 0.5}, sizes=(SIDE,), objective={"mmd": {}}).model_dump(mode="json")["model"],
            "decoder": {"width": 256},
        },
        "objective": {"reconstruction": {}},
    }
    config = TrialConfig.model_validate({"views": [{"size": SIDE}], **values})
    decoder = build_model(config).decoder
    assert decoder is not None
    is_normal(decoder.mask_token, 0.02)
    for layer in (one for one in decoder.modules() if isinstance(one, nn.Linear)):
        is_uniform(layer.weight, math.sqrt(6 / sum(layer.weight.shape)))
        assert not layer.bias.any()


def test_dino_and_timm_start_normal_and_differ_in_the_class_token() -> None:
    networks = {scheme: started_as(scheme) for scheme in ("dino", "timm")}
    for scheme, network in networks.items():
        for layer in linear_layers(network).values():
            is_normal(layer.weight, 0.02)
        is_uniform(network.patch_embed.proj.weight, 1 / math.sqrt(3 * 4 * 4))
        is_normal(network.pos_embed, 0.02)
        is_normal(network.cls_token, 0.02 if scheme == "dino" else 1e-6)
    left, right = (network.state_dict() for network in networks.values())
    assert [name for name in left if not torch.equal(left[name], right[name])] == ["cls_token"]


def test_a_frozen_patch_projection_starts_as_a_trained_one_does() -> None:
    frozen, trained = started_as("moco_v3", freeze_patches=True), started_as("moco_v3")
    assert torch.equal(frozen.patch_embed.proj.weight, trained.patch_embed.proj.weight)
    assert [parameter.requires_grad for parameter in frozen.patch_embed.parameters()] == [False, False]


def test_a_stored_transformer_without_initialization_and_heads_starts_as_it_did() -> None:
    config = trial(None, sizes=(SIDE,), objective={"mmd": {}})
    stored = config.model_dump(mode="json")
    assert stored["model"]["backbone"].pop("initialization") == "timm"
    assert stored["model"]["backbone"].pop("heads") is None
    assert TrialConfig.model_validate(stored) == config


@pytest.mark.parametrize(("kind", "heads", "expected"), [("vit_tiny", None, 3), ("vit_tiny", 12, 12)])
def test_heads_may_be_other_than_deits(kind: str, heads: int | None, expected: int) -> None:
    attention: Any = started_as("timm", kind=kind, heads=heads).blocks[0].attn
    assert attention.num_heads == expected


def block_flops(count: int, d: int) -> int:
    """Multiplications and additions of one block over `count` tokens: 24 n d² for the layers, 4 n² d for attention."""
    return 24 * count * d**2 + 4 * count**2 * d


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 16), (0.5, 8), (0.75, 4)])
def test_the_cost_falls_with_the_drop_ratio(ratio: float, kept: int) -> None:
    model = build_model(trial({"drop_ratio": ratio}, sizes=(SIDE,), objective={"mmd": {}}))
    model.teacher = None
    # The counter does not know the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(model.eval(), images(count=1))
    blocks = sum(sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name.endswith("blocks"))
    assert blocks == 2 * block_flops(kept + 1, 32)


@pytest.mark.parametrize(
    ("width", "patches", "ratio", "student", "speedup"),
    [
        (192, 64, 0.5, 0.494, 1.61),
        (192, 64, 0.75, 0.251, 2.28),
        (384, 144, 0.75, 0.244, 2.31),
        (384, 196, 0.75, 0.239, 2.33),
    ],
)
def test_the_published_sizes_cost_what_was_worked_out(
    width: int, patches: int, ratio: float, student: float, speedup: float
) -> None:
    """Student against dense student, and a whole step (forward and backward, and a dense teacher forward)."""
    kept = round(patches * (1 - ratio))
    share = block_flops(kept + 1, width) / block_flops(patches + 1, width)
    assert share == pytest.approx(student, abs=5e-4)
    assert 4 / (3 * share + 1) == pytest.approx(speedup, abs=5e-3)


def test_fixed_positions_are_the_published_sines_and_never_move() -> None:
    table = sine_positions(8, 192, 10_000.0)[0]
    assert float(table[0].abs().max()) == 0.0
    torch.testing.assert_close(table[1:].norm(dim=1), torch.full((64,), math.sqrt(96)))
    assert float((table[1] - table[2]).norm()) == pytest.approx(1.73, abs=0.005)
    for temperature, distance in ((100.0, 2.34), (20.0, 2.85)):
        near = sine_positions(8, 192, temperature)[0]
        assert float((near[1] - near[2]).norm()) == pytest.approx(distance, abs=0.005)
    # Row 3, column 5 of the grid, frequency number 7 of 48, written out.
    omega = 10_000.0 ** (-7 / 48)
    expected = [math.sin(5 * omega), math.cos(5 * omega), math.sin(3 * omega), math.cos(3 * omega)]
    assert table[1 + 3 * 8 + 5, [7, 48 + 7, 96 + 7, 144 + 7]].tolist() == pytest.approx(expected, abs=1e-6)
    model = build_model(trial(None, model={"positions": "fixed", "embed_dim": 192}, sizes=(32, 32)))
    backbone: Any = model.backbone
    torch.testing.assert_close(backbone.pos_embed[0], table, rtol=0, atol=0)
    assert not backbone.pos_embed.requires_grad


def test_frozen_parts_and_the_teacher_get_no_gradient_and_the_rest_does() -> None:
    masking = {"drop_ratio": 0.5, "mismatch_probability": 0.3}
    config = trial(
        masking,
        model={"positions": "fixed", "freeze_patches": True},
        objective={"alignment": {}, "mismatch_detection": {}},
    )
    model = build_model(config)
    total, _ = Objective(config.objective)(run(model, images(), images(seed=1)))
    total.backward()  # type: ignore[no-untyped-call]
    frozen = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    teacher = {name for name, _ in model.named_parameters() if name.startswith("teacher.")}
    assert teacher
    patch_embed = {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
    assert frozen == teacher | patch_embed | {"backbone.pos_embed"}
    for name in ("mismatch_head.weight", "backbone.cls_token", "backbone.blocks.0.attn.qkv.weight"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0
    # A moving average of what does not move stays equal to the last bit.
    model.update_teacher(3, 10)
    for name in (*patch_embed, "backbone.pos_embed"):
        assert torch.equal(model.get_parameter(f"teacher.{name}"), model.get_parameter(name))


def test_the_detection_head_exists_only_with_its_term_and_changes_nothing_else() -> None:
    masking = {"drop_ratio": 0.5, "mismatch_probability": 0.3}
    with_head = build_model(trial(masking, objective={"alignment": {}, "mismatch_detection": {}})).state_dict()
    off: tuple[dict[str, Any], ...] = ({"alignment": {}}, {"alignment": {}, "mismatch_detection": {"weight": 0.0}})
    for objective in off:
        without = build_model(trial(masking, objective=objective)).state_dict()
        assert with_head.keys() - without.keys() == {"mismatch_head.weight", "mismatch_head.bias"}
        assert all(torch.equal(with_head[name], value) for name, value in without.items())


def test_masks_change_with_the_step_and_differ_between_views() -> None:
    model = build_model(trial({"drop_ratio": 0.5}))
    first, second = run(model, images(), images()).patches
    assert not torch.equal(first.kept, second.kept)
    assert not torch.equal(run(model, images(), images(), step=1).patches[0].kept, first.kept)
    assert torch.equal(run(model, images(), images()).patches[0].kept, first.kept)
