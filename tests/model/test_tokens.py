import torch

from dual_denoising.model.tokens import Grouping, choose_centers, group


def tokens_of(clouds, centers, size):
    return group(clouds, Grouping(centers), size)


def test_tokens_are_relative_to_their_centre_and_hold_it(clouds):
    centers = choose_centers(clouds, 8)
    tokens = tokens_of(clouds, centers, 6)
    assert tokens.points.shape == (5, 8, 6, 3)
    expected = clouds.gather(1, centers[..., None].expand(-1, -1, 3))
    torch.testing.assert_close(tokens.centers, expected)
    assert (tokens.points.norm(dim=-1).amin(-1) == 0).all()


def test_kept_neighbours_are_not_searched_again(clouds):
    centers = choose_centers(clouds, 4)
    kept = Grouping(centers, torch.zeros(5, 4, 3, dtype=torch.long))
    tokens = group(clouds, kept, 3)
    torch.testing.assert_close(
        tokens.points + tokens.centers[:, :, None], clouds[:, None, :1].expand(5, 4, 3, 3)
    )
