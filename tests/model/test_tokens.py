import torch

from dual_denoising.model.tokens import Grouping, choose_centers, group


def test_tokens_are_relative_to_their_centre_and_hold_it_and_kept_neighbours_are_not_sought(clouds):
    centers = choose_centers(clouds, 8)
    tokens = group(clouds, Grouping(centers), 6)
    assert tokens.points.shape == (5, 8, 6, 3)
    expected = clouds.gather(1, centers[..., None].expand(-1, -1, 3))
    torch.testing.assert_close(tokens.centers, expected)
    assert (tokens.points.norm(dim=-1).amin(-1) == 0).all()
    kept = group(clouds, Grouping(centers, torch.zeros(5, 8, 6, dtype=torch.long)), 6)
    torch.testing.assert_close(
        kept.points + kept.centers[:, :, None], clouds[:, None, :1].expand_as(kept.points)
    )
