import pytest
import torch

from dual_denoising.model.tokens import center_indices, group


def test_tokens_are_relative_to_their_centre_and_hold_it(clouds):
    indices = center_indices(clouds, 8)
    tokens = group(clouds, indices, 6)
    assert tokens.points.shape == (5, 8, 6, 3)
    torch.testing.assert_close(
        tokens.centers, clouds.gather(1, indices[..., None].expand(-1, -1, 3))
    )
    assert (tokens.points.norm(dim=-1).amin(-1) == 0).all()


def test_the_same_indices_pick_noisy_and_clean_centres(clouds):
    indices = center_indices(clouds, 8)
    noisy = clouds + 0.05 * torch.randn_like(clouds)
    offset = group(noisy, indices, 6).centers - group(clouds, indices, 6).centers
    picked = (noisy - clouds).gather(1, indices[..., None].expand(-1, -1, 3))
    torch.testing.assert_close(offset, picked)


def test_gradients_reach_points_through_centres_and_neighbours(clouds):
    clouds = clouds.double().requires_grad_()
    indices = center_indices(clouds, 4)
    assert torch.autograd.gradcheck(lambda c: group(c, indices, 3), clouds)


@pytest.mark.parametrize(("groups", "size"), [(97, 4), (8, 97)])
def test_too_few_points_are_named(clouds, groups, size):
    indices = center_indices(clouds, groups)
    with pytest.raises(ValueError, match=r"96 points: tokens of .* need at least 97"):
        group(clouds, indices, size)


def test_duplicate_points_make_finite_tokens():
    clouds = torch.zeros(2, 20, 3)
    tokens = group(clouds, center_indices(clouds, 5), 4)
    assert (tokens.points == 0).all()
