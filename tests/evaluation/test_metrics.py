import numpy as np
import pytest
import scipy.stats
import torch

from dual_denoising.evaluation import metrics


def test_label_ranks_against_sorting():
    logits = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    ranks, first = metrics.label_ranks(logits, labels)
    own = logits.gather(-1, labels.expand(2, -1)[..., None])
    torch.testing.assert_close(ranks, (logits > own).sum(-1))
    torch.testing.assert_close(first, logits.argmax(-1))
    ties, _ = metrics.label_ranks(torch.zeros(3, 4), torch.tensor([0, 2, 3]))
    assert ties.tolist() == [0, 2, 3]


def test_confusion_counts_rows_of_true_classes():
    counts = metrics.confusion_matrix(np.array([1, 3, 0, 0]), np.array([0, 3, 2, -1]), 4)
    assert (counts[1, 0], counts[3, 3], counts[0, 2], counts.sum()) == (1, 1, 1, 3)
    assert metrics.mean_sd([0.5]) == (0.5, 0.0)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (10, 10), (620, 908)])
def test_wilson_interval_is_scipys(hits, n):
    expected = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert metrics.wilson_interval(hits / n, n) == pytest.approx(tuple(expected), abs=1e-6)
