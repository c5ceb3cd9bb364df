import torch

from dual_denoising.model import losses


def test_point_loss_is_the_mean_chamfer_of_each_clouds_tokens():
    clean = torch.zeros(2, 3, 4, 3)
    rebuilt = torch.zeros(2, 3, 4, 3)
    rebuilt[1, 0, :, 0] = 2.0  # one token 2 away: 4 both ways, over 3 tokens
    torch.testing.assert_close(losses.point_loss(rebuilt, clean), torch.tensor([0.0, 8 / 3]))


def test_point_weight_is_one_over_one_plus_sigma_squared():
    expected = torch.tensor([1.0, 1 / 1.25])
    torch.testing.assert_close(losses.point_weight(torch.tensor([0.0, 0.5])), expected)


def test_feature_loss_is_smooth_l1_with_beta_1():
    teacher, predicted = torch.zeros(1, 1, 4), torch.tensor([[[0.0, 0.5, -1.0, 3.0]]])
    expected = (0 + 0.5 * 0.25 + 0.5 + 2.5) / 4
    assert losses.feature_loss(predicted, teacher).item() == expected
    both = predicted.expand(1, 2, 4), teacher.expand(1, 2, 4)
    assert losses.feature_loss(*both).item() == expected  # the mean over types, not their sum
