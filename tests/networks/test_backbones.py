"""Backbones: whatever the trunk, the maps are those of a pyramid, each image its own and each parameter in use."""

import pytest
import torch
from torch import nn

from organdetr_monai.errors import InputError
from organdetr_monai.export import ExportNetwork
from organdetr_monai.networks import DeformableEncoder, FPNBackbone, ResNetBackbone, SwinBackbone, SwinUNETRBackbone
from organdetr_monai.networks.swin import SwinBlocks

SIZES = [(64, 32, 32), (33, 47, 50), (17, 16, 31)]


def fpn(levels=(2, 3, 4), *, stages=4, **options):
    return FPNBackbone(1, (4, 8, 8, 8, 8)[:stages], 12, levels, **options)


def resnet(levels=(2, 3, 4), *, stages=4, **options):
    return ResNetBackbone(1, 4, 12, levels, depths=(2, 1, 1, 1)[: stages - 1], **options)


def swin(levels=(2, 3, 4), *, stages=4, **options):
    return SwinBackbone(1, 6, 12, levels, depths=(2, 2, 1, 1, 1)[:stages], heads=(1, 2, 3, 3, 3)[:stages], **options)


def swin_unetr(levels=(2, 3, 4), *, stages=4, **options):
    depths, heads = (2, 2, 1, 1)[: stages - 1], (1, 2, 3, 3)[: stages - 1]
    return SwinUNETRBackbone(1, 6, 12, levels, depths=depths, heads=heads, **options)


every_backbone = pytest.mark.parametrize("backbone", [fpn, resnet, swin, swin_unetr], ids=lambda f: f.__name__)


@every_backbone
def test_maps_are_those_of_a_pyramid_at_any_size(backbone):
    network = backbone().eval()
    for shape in SIZES:
        maps = network(torch.rand(1, 1, *shape))
        assert [tuple(m.shape) for m in maps] == [(1, 12, *(-(-n // 2**k) for n in shape)) for k in (2, 3, 4)]
        assert all(m.isfinite().all() for m in maps)


@every_backbone
def test_batch_of_two_equals_two_batches_of_one_in_training_too(backbone):
    network = backbone(**({"drop_path": 0.0} if backbone is swin else {})).train()
    images = torch.rand(2, 1, 36, 28, 44)
    with torch.no_grad():
        both = network(images)
        for i in range(2):
            for whole, alone in zip(both, network(images[i : i + 1]), strict=True):
                assert torch.allclose(whole[i : i + 1], alone, atol=1e-5)


@every_backbone
@pytest.mark.parametrize("stages", [4, 5])
def test_every_parameter_gets_a_gradient(backbone, stages):
    network = backbone(stages=stages)
    maps = network.eval()(torch.rand(2, 1, 64, 48, 64))  # of five stages the last has more than one voxel
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    assert len(network.stages) == stages and len(maps) == 3
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@every_backbone
def test_coarse_maps_reach_fine_ones(backbone):
    """The top-down path: without its finest lateral connection a map is what comes from above."""
    network = backbone().eval()
    images = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad():
        for p in network.lateral[0].parameters():
            p.zero_()
        maps = network(images)
    assert torch.allclose(maps[0][:, :, ::2, ::2, ::2], maps[1], atol=1e-6)
    assert (maps[1] - nn.functional.interpolate(maps[2], scale_factor=2)).abs().max() > 1e-3


@every_backbone
def test_a_voxel_changes_the_maps_over_it(backbone):
    """Axes stay what they are through all permutations."""
    network = backbone().eval()
    image = torch.rand(1, 1, 64, 32, 48)
    changed = image.clone()
    changed[..., 52:56, 4:8, 20:24] += 5.0
    with torch.no_grad():
        difference = (network(changed)[0] - network(image)[0]).abs().sum(1)[0]  # (16, 8, 12)
    place = torch.tensor(torch.unravel_index(difference.argmax(), difference.shape))
    assert ((place - torch.tensor([13, 1, 5])).abs() <= 1).all()


@every_backbone
def test_bfloat16_is_near_float32(backbone):
    network = backbone(**({"drop_path": 0.0} if backbone is swin else {})).train()
    image = torch.rand(1, 1, 32, 40, 32)
    exact = network(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(image)
    sum(m.float().square().sum() for m in rounded).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    for a, b in zip(exact, rounded, strict=True):
        assert 1e-4 * a.norm() < (a - b).norm() < 0.05 * a.norm(), "or it did not run in bfloat16"


@every_backbone
def test_checkpointing_gives_the_same_gradients_from_less_memory(backbone):
    results, kept = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)  # also of what drop path drops
        network = backbone(checkpointing=checkpointing).train()
        storages = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(m.square().sum() for m in network(torch.rand(2, 1, 32, 32, 32)))
        loss.backward()
        results.append([p.grad for p in network.parameters()])
        kept.append(sum(storages.values()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*results, strict=True))
    assert kept[1] < 0.7 * kept[0], kept


@every_backbone
@pytest.mark.parametrize("levels", [(3, 2), (1, 3), (0, 1), (3, 5), ()])
def test_levels_that_it_has_not_are_refused(backbone, levels):
    with pytest.raises(ValueError, match="levels"):
        backbone(levels)


@every_backbone
def test_all_stages_can_come_out_and_weights_serve_any_size(backbone):
    network = backbone((1, 2, 3, 4)).eval()
    assert [m.shape[2] for m in network(torch.rand(1, 1, 40, 32, 32))] == [20, 10, 5, 3]
    other = backbone((1, 2, 3, 4)).eval()
    other(torch.rand(1, 1, 32, 48, 64))
    other.load_state_dict(network.state_dict())


def test_resnet_has_the_widths_of_resnet50_and_no_batch_norm():
    network = ResNetBackbone(1, 32)
    widths = [[m for m in stage.modules() if isinstance(m, nn.Conv3d)][-1].out_channels for stage in network.stages]
    assert widths[0] == 32 and [layer.in_channels for layer in network.lateral] == [128, 256, 512]
    norms = [m for m in network.modules() if "Norm" in type(m).__name__]
    assert norms and all(isinstance(m, nn.InstanceNorm3d) and m.affine for m in norms)


def test_swin_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"depths \(2, 2\) and heads \(3, 6, 12\)"):
        SwinBackbone(depths=(2, 2), heads=(3, 6, 12))
    with pytest.raises(ValueError, match="width 25 is not a multiple of 3 heads"):
        SwinBackbone(feature_size=25)
    with pytest.raises(ValueError, match="window must be at least 2 voxels, got 1"):
        SwinBackbone(window=1)


def neighbour(blocks: SwinBlocks, offset: tuple[int, int, int]) -> SwinBlocks:
    """Make the attention of every block look at one neighbour alone and give its values as they are."""
    edge = blocks.window[0]
    relative = tuple(-o + edge - 1 for o in offset)  # of the query against the key
    row = (relative[0] * (2 * edge - 1) + relative[1]) * (2 * edge - 1) + relative[2]
    with torch.no_grad():
        for block in blocks.blocks:
            dim = block.dim
            block.norm1 = block.norm2 = nn.Identity()
            block.attn.qkv.weight.copy_(torch.cat([torch.zeros(2 * dim, dim), torch.eye(dim)]))
            block.attn.qkv.bias.zero_()
            block.attn.proj.weight.copy_(torch.eye(dim))
            block.attn.proj.bias.zero_()
            block.attn.relative_position_bias_table.zero_()[row] = 50.0
            block.mlp.linear2.weight.zero_()
            block.mlp.linear2.bias.zero_()
    return blocks.eval()


@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 2, 4), (1, 3, 2), (8, 3, 4)])
@pytest.mark.parametrize("offset", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 1)])
def test_position_bias_is_of_the_same_place_in_maps_smaller_than_a_window(shape, offset):
    blocks = neighbour(SwinBlocks(2, 1, window=4, drop_path=[0.0]), offset)
    x = torch.rand(1, 2, *shape)
    with torch.no_grad():
        seen = (blocks(x) - x)[0, 0]  # attention adds the neighbour to the voxel
    compared = 0
    for place in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
        there = [p + o for p, o in zip(place, offset, strict=True)]
        if all(0 <= t < n and t // 4 == p // 4 for t, n, p in zip(there, shape, place, strict=True)):
            assert torch.allclose(seen[tuple(place)], x[(0, 0, *there)], atol=1e-4), (place, there)
            compared += 1
    assert compared == torch.tensor([n // 4 * (4 - abs(o)) + max(n % 4 - abs(o), 0)
                                     for n, o in zip(shape, offset, strict=True)]).prod()  # fmt: skip


def test_shifted_windows_let_neighbours_meet_and_ends_do_not():
    blocks = neighbour(SwinBlocks(2, 1, window=4, drop_path=[0.0, 0.0]), (1, 0, 0))
    blocks.blocks[0] = nn.Module()  # the first does nothing
    blocks.blocks[0].forward = lambda x, mask: x
    x = torch.rand(1, 2, 8, 4, 4)
    with torch.no_grad():
        seen = blocks(x) - x
    assert torch.allclose(seen[:, :, 3], x[:, :, 4], atol=1e-4), "across the edge of the first windows"
    assert (seen[:, :, 7] - x[:, :, 0]).abs().max() > 0.1, "what the shift rolls over the end is masked"


def test_drop_path_is_for_training_alone():
    network = SwinBackbone(1, 6, 12, depths=(2, 2, 1, 1), heads=(1, 2, 3, 3), drop_path=0.5)
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network(image)[0], network(image)[0])
        network.eval()
        assert torch.equal(network(image)[0], network(image)[0])


@pytest.mark.parametrize("parts", [{"backbone": lambda: ResNetBackbone(1, 4, 24, (1, 2, 3), depths=(1, 1))},
                                   {"encoder": lambda: DeformableEncoder(24, points=2, hidden=24)}],
                         ids=["resnet", "deformable"])  # fmt: skip
def test_traces_answer_at_any_size(small_network, parts):
    network = small_network(**{name: make() for name, make in parts.items()}).eval()
    export = ExportNetwork(network, example=(24, 32, 16))
    script = torch.jit.script(export)
    for shape in ((24, 32, 16), (37, 21, 50)):
        image = torch.rand(2, 1, *shape)
        with torch.no_grad():
            assert (script(image) - export(image)).abs().max() < 3e-4


@pytest.mark.parametrize("backbone", [SwinBackbone, SwinUNETRBackbone])
def test_swin_says_that_it_cannot_be_exported(small_network, backbone):
    network = small_network(backbone=backbone(1, 12, 24, (1, 2, 3)))
    with pytest.raises(InputError, match="Swin transformer cannot be exported.*train a backbone of convolutions"):
        ExportNetwork(network)


@pytest.mark.parametrize("shape", [(4, 6, 6), (6, 2, 6), (4, 4, 4), (5, 4, 1)])
def test_gradients_in_bfloat16_are_right_where_a_map_is_thin(shape):
    """PyTorch's own are not, on processors with bfloat16: what was in memory before ends up in them."""
    backbone = FPNBackbone(1, (32, 48), 12, (1, 2))
    image = torch.rand(2, 1, *(2 * n for n in shape))
    weights = [torch.randn_like(m) for m in backbone(image)]
    results = []
    for enabled in (False, True):
        backbone.zero_grad()
        for n in range(10, 21, 2):
            torch.full((2**n,), torch.nan)  # and freed again
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            maps = backbone(image)
        sum((m.float() * w).sum() for m, w in zip(maps, weights, strict=True)).backward()
        results.append({name: p.grad for name, p in backbone.named_parameters() if p.ndim > 1})
    for name, grad in results[0].items():  # rounding moves it by a fifth where a norm sees few voxels
        assert (grad - results[1][name]).norm() < 0.5 * grad.norm(), name
