"""Where a pixel of one view lies in another, and noise that sticks to surfaces."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras, CameraType

from eschernet_prior.base.cameras import look_at, on_sphere, orbit
from eschernet_prior.base.errors import UserError
from eschernet_prior.procedural.raytracer import render
from eschernet_prior.procedural.scenes import embedded_scene
from properties import examples
from style_nerf2nerf.reprojection import ViewCameras, match, sample
from style_nerf2nerf.restyler.noise import warp_noise

LENS = torch.tensor([0.015, -0.028, 0.003, 0.001, 0.0002, 0.0006])


def turned(degrees: list[float], elevation: float = 20.0) -> torch.Tensor:
    azimuth = torch.tensor([math.radians(angle) for angle in degrees], dtype=torch.float64)
    return look_at(on_sphere(torch.full_like(azimuth, 2.0), torch.full_like(azimuth, elevation), azimuth)).float()


@pytest.fixture(scope="module")
def bear():
    """Four renders of a scene with exact depth: 0, 12 and 60 degrees, and from behind."""
    poses = turned([0.0, 12.0, 60.0, 180.0])
    seen = render(embedded_scene("bear"), poses, 64, 64, 45.0, supersampling=2)
    return seen.colour.movedim(-1, 1), seen.depth.movedim(-1, 1), ViewCameras.from_fov(poses, 45.0, 64, 64)


@examples(20)
@given(seed=st.integers(0, 999), lens=st.booleans())
def test_unprojected_pixels_project_onto_themselves(seed, lens):
    torch.manual_seed(seed)
    cameras = ViewCameras(
        orbit(2, 2.0, 20.0, seed),
        20 + 40 * torch.rand(2, 2),
        torch.tensor([[17.0, 11.0], [14.5, 13.0]]),
        24,
        32,
        LENS.expand(2, 6) if lens else None,
    )
    depth = 0.5 + torch.rand(24, 32)
    pixels, distance = cameras.project(1, cameras.unproject(1, depth))
    x, y = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(24) + 0.5, indexing="xy")
    torch.testing.assert_close(pixels, torch.stack([x, y], -1), atol=2e-3, rtol=0)
    torch.testing.assert_close(distance, depth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lens", [None, LENS])
def test_pixels_lie_on_nerfstudios_rays(lens):
    """What is unprojected lies where nerfstudio's own cameras look, lens distortion included."""
    cameras = Cameras(
        orbit(2, 2.0, 20.0)[:, :3],
        fx=torch.full((2, 1), 40.0),
        fy=torch.full((2, 1), 38.0),
        cx=torch.full((2, 1), 17.0),
        cy=torch.full((2, 1), 11.0),
        width=32,
        height=24,
        distortion_params=None if lens is None else lens.expand(2, 6),
    )
    rays = cameras.generate_rays(camera_indices=1, keep_shape=True)
    ours = ViewCameras.from_nerfstudio(cameras)
    away = ours.unproject(1, torch.full((24, 32), 3.0)) - rays.origins
    torch.testing.assert_close(away / away.norm(dim=-1, keepdim=True), rays.directions, atol=1e-4, rtol=0)


def test_other_cameras_and_mixed_sizes_are_refused():
    poses, one = orbit(2, 2.0)[:, :3], torch.ones(2, 1)
    fisheye = Cameras(poses, one, one, one, one, 32, 24, camera_type=CameraType.FISHEYE)
    with pytest.raises(UserError, match="perspective"):
        ViewCameras.from_nerfstudio(fisheye)
    mixed = Cameras(poses, one, one, one, one, torch.tensor([[32], [40]]), 24)
    with pytest.raises(UserError, match="one size"):
        ViewCameras.from_nerfstudio(mixed)


def test_a_view_is_found_in_its_neighbour(bear):
    images, depths, cameras = bear
    found = match(cameras, depths, 0, 1)
    inside = depths[0, 0] > 0
    assert found.visible[inside].float().mean() > 0.6
    assert not found.visible[~inside].any()
    error = (sample(images[1], found.pixels) - images[0]).square().mean(0)
    astray = (images[1] - images[0]).square().mean(0)
    assert error[found.visible].mean() < 0.5 * astray[found.visible].mean()
    assert error[found.visible].mean().sqrt() < 0.08


def test_what_another_view_cannot_see_is_not_found(bear):
    _, depths, cameras = bear
    shares = [float(match(cameras, depths, 0, other).visible.float().mean()) for other in (0, 1, 2, 3)]
    assert shares == sorted(shares, reverse=True)
    assert shares[3] < 0.1 * shares[0], "the front is not seen from behind"


def test_a_sphere_hides_what_is_behind_it():
    """A ball before a wall, two cameras beside each other: exactly the wall's strip behind the ball is lost."""
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 1.0
    cameras = ViewCameras.from_fov(poses, 90.0, 64, 64)
    depths = torch.full((2, 1, 64, 64), 4.0)
    # A square of side 1 at depth 2, centred before the first camera: 16 pixels wide, shifted by 16 in the second view.
    depths[0, :, 24:40, 24:40] = 2.0
    depths[1, :, 24:40, 8:24] = 2.0
    found = match(cameras, depths, 0, 1)
    assert found.visible[26:38, 26:38].all()
    torch.testing.assert_close(found.pixels[30, 30], torch.tensor([30.5 - 16, 30.5]))
    # The wall is shifted by 8: the strip that lies behind the square in the second view is 16 to 32 here.
    assert not found.visible[26:38, 17:24].any()
    assert found.visible[26:38, 42:60].all()
    assert found.visible[5:20, 10:60].all()
    assert not found.visible[:, :8].any(), "left of the second view's edge"


def test_warped_noise_sticks_to_surfaces_and_keeps_its_distribution(bear):
    _, depths, cameras = bear
    noise = torch.randn(4, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    warped = warp_noise(noise, depths, cameras)
    assert torch.equal(warped[0], noise[0])
    coarse = cameras.resized(32, 32)
    small = torch.nn.functional.interpolate(depths, size=(32, 32), mode="nearest-exact")
    found = match(coarse, small, 1, 0)
    assert torch.equal(warped[1][:, found.visible], sample(noise[0], found.pixels, "nearest")[:, found.visible])
    alone = small[1, 0] == 0
    assert torch.equal(warped[1][:, alone], noise[1][:, alone]), "where nothing is, noise is a view's own"
    for view in range(4):
        assert abs(float(warped[view].mean())) < 0.06
        assert abs(float(warped[view].std()) - 1) < 0.06
    drawn = [warp_noise(torch.randn(4, 1, 32, 32), depths, cameras) for _ in range(60)]
    assert abs(float(torch.stack(drawn).var(0)[1:].mean()) - 1) < 0.02


def test_warped_noise_reaches_the_restyler(bear):
    from style_nerf2nerf.restyler.restyler import Restyler
    from view_models import stand_in_pipeline

    images, depths, cameras = bear
    restyler = Restyler(stand_in_pipeline(), "test")
    told = {"num_inference_steps": 2, "strength": 1.0, "share_attention": False}
    warped, plain = (
        restyler.restyle(images[:2], depths[:2], "gold", cameras=some, warped_noise=some is not None, **told)
        for some in (ViewCameras.from_fov(cameras.camera_to_worlds[:2], 45.0, 64, 64), None)
    )
    assert torch.equal(warped[0], plain[0])
    assert (warped[1] - plain[1]).abs().mean() > 1e-3
    with pytest.raises(ValueError, match="4 cameras"):
        restyler.restyle(images[:2], depths[:2], "gold", cameras=cameras, warped_noise=True, **told)
