"""The fast hash grid gives nerfstudio's numbers and gradients."""

import pytest
import torch
from nerfstudio.field_components.encodings import HashEncoding

from eschernet_prior.base.field import FieldModelConfig, small_field
from eschernet_prior.base.hashgrid import encode


@pytest.mark.parametrize(("levels", "log2_size", "features"), [(8, 14, 2), (3, 5, 4)])
def test_values_and_gradients_are_those_of_nerfstudio(levels, log2_size, features):
    torch.manual_seed(0)
    grid = HashEncoding(
        num_levels=levels, max_res=512, log2_hashmap_size=log2_size, features_per_level=features, implementation="torch"
    )
    torch.nn.init.normal_(grid.hash_table)
    points = torch.rand(7, 50, 3, requires_grad=True)
    weights = torch.randn(7, 50, levels * features)
    expected, found = grid.pytorch_fwd(points), encode(grid, points)
    assert torch.allclose(found, expected, atol=1e-5)
    by = [grid.hash_table, points]
    for ours, theirs in zip(*(torch.autograd.grad((y * weights).sum(), by) for y in (found, expected))):
        assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))


def test_fields_use_it_under_nerfstudios_names():
    config = small_field(FieldModelConfig())
    from nerfstudio.data.scene_box import SceneBox

    model = config.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]])), num_train_data=2, metadata={}
    )
    grids = [module for module in model.modules() if isinstance(module, HashEncoding)]
    assert len(grids) == 3
    assert all(grid.pytorch_fwd.func is encode for grid in grids)
    assert "field.mlp_base.model.0.hash_table" in model.state_dict()
