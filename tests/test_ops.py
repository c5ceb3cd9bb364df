import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from dual_denoising import ops


def brute_fps(points: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        gaps = ((points[:, None] - points[chosen]) ** 2).sum(-1).min(1)
        chosen.append(int(gaps.argmax()))
    return chosen


def brute_chamfer(x: np.ndarray, y: np.ndarray) -> float:
    gaps = ((x[:, None].astype(np.float64) - y[None]) ** 2).sum(-1)
    return gaps.min(1).mean() + gaps.min(0).mean()


@pytest.fixture(params=[False, True], ids=["float32", "autocast"])
def autocast(request):
    with torch.autocast("cpu", torch.bfloat16, enabled=request.param):
        yield


@pytest.mark.usefixtures("autocast")
def test_farthest_points_are_brute_force_ones(clouds):
    points, idx = ops.sample_farthest_points(clouds, K=20)
    for cloud, chosen, rows in zip(clouds, points, idx, strict=True):
        assert rows.tolist() == brute_fps(cloud.double().numpy(), 20)
        assert torch.equal(chosen, cloud[rows])


@pytest.mark.usefixtures("autocast")
def test_neighbours_are_the_kd_trees(clouds):
    centers = clouds[:, :7]
    found = ops.knn_points(centers, clouds, K=9, return_nn=True)
    for b, cloud in enumerate(clouds.double().numpy()):
        distance, rows = cKDTree(cloud).query(cloud[:7], 9)
        assert np.array_equal(found.idx[b].numpy(), rows)
        np.testing.assert_allclose(found.dists[b].numpy(), distance**2, atol=1e-6)
        assert torch.equal(found.knn[b], clouds[b][found.idx[b]])


@pytest.mark.usefixtures("autocast")
def test_chamfer_is_brute_force(clouds):
    x, y = clouds[:, :30], clouds[:, 30:80] * 0.9
    loss, normals = ops.chamfer_distance(x, y, batch_reduction=None)
    assert normals is None
    expected = [brute_chamfer(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)


def test_half_precision_input_is_raised_before_any_arithmetic(clouds):
    half = clouds.bfloat16()
    expected = ops.knn_points(half.float(), half.float(), K=5)
    assert torch.equal(ops.knn_points(half, half, K=5).idx, expected.idx)


def test_chamfer_gradient_is_finite_and_right(clouds):
    x, y = clouds[:1, :6].double().requires_grad_(), clouds[:1, 6:14].double()
    assert torch.autograd.gradcheck(lambda a: ops.chamfer_distance(a, y)[0], x)
    same = clouds[:1].clone().requires_grad_()
    ops.chamfer_distance(same, clouds[:1])[0].backward()  # distance 0 everywhere
    assert same.grad.isfinite().all()


def test_lengths_follow_pytorch3d(clouds):
    lengths = torch.tensor([96, 4, 10, 1, 50])
    points, idx = ops.sample_farthest_points(clouds, lengths, K=12)
    assert (idx[1] == -1).sum() == 8
    assert (points[1, 4:] == 0).all()
    for b, n in enumerate(lengths.tolist()):
        k = min(12, n)
        assert idx[b, :k].tolist() == brute_fps(clouds[b, :n].double().numpy(), k)
    found = ops.knn_points(clouds, clouds, lengths, lengths, K=3)
    assert (found.idx[3] == 0).all()
    assert (found.dists[3] == 0).all()
    assert (found.idx[2, :10] < 10).all()
    assert (found.dists[2, 10:] == 0).all()
    loss, _ = ops.chamfer_distance(clouds, clouds * 0.5, lengths, lengths, batch_reduction=None)
    expected = [
        brute_chamfer(c[:n], c[:n] * 0.5) for c, n in zip(clouds.numpy(), lengths, strict=True)
    ]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)


def test_more_neighbours_than_points_pads_with_zeros(clouds):
    found = ops.knn_points(clouds[:, :2], clouds[:, :4], K=6, return_nn=True)
    assert found.idx.shape == (5, 2, 6)
    assert (found.dists[..., 4:] == 0).all()
    assert (found.knn[..., 4:, :] == 0).all()


def test_samples_may_be_counted_per_cloud(clouds):
    counts = [3, 7, 1, 5, 7]
    points, idx = ops.sample_farthest_points(clouds, K=counts)
    assert (idx >= 0).sum(1).tolist() == counts
    assert torch.equal(idx[1], ops.sample_farthest_points(clouds, K=7)[1][1])
    assert (points[2, 1:] == 0).all()


def test_empty_clouds_and_weights_cost_nothing(clouds):
    lengths = torch.tensor([0, 96, 96, 96, 96])
    loss, _ = ops.chamfer_distance(clouds, clouds * 0.9, lengths, lengths, batch_reduction=None)
    assert loss[0] == 0
    assert loss.isfinite().all()
    assert ops.chamfer_distance(clouds, clouds * 0.9, weights=torch.zeros(5))[0] == 0


def test_fewer_points_than_samples_pads_with_minus_one(clouds):
    points, idx = ops.sample_farthest_points(clouds[:, :3], K=5)
    assert idx[:, 3:].unique().tolist() == [-1]
    assert (points[:, 3:] == 0).all()


def test_duplicate_points_are_chosen_last(clouds):
    doubled = torch.cat([clouds[:, :10], clouds[:, :10]], dim=1)
    _, idx = ops.sample_farthest_points(doubled, K=10)
    for cloud, rows in zip(doubled, idx, strict=True):
        assert len(cloud[rows].unique(dim=0)) == 10


@pytest.mark.parametrize("norm", [1, 2])
def test_norms(clouds, norm):
    found = ops.knn_points(clouds[:, :4], clouds, K=2, norm=norm)
    gaps = (clouds[:, :4, None] - clouds[:, None]).abs().pow(norm).sum(-1)
    torch.testing.assert_close(found.dists, gaps.sort(-1).values[..., :2])


def test_chamfer_reductions(clouds):
    x, y, weights = clouds[:, :8], clouds[:, 8:20], torch.tensor([1.0, 0, 2, 1, 0])
    (to_y, to_x), _ = ops.chamfer_distance(x, y, batch_reduction=None, point_reduction=None)
    mean = to_y.mean(1) + to_x.mean(1)
    cases = {
        ("mean", "mean"): mean.mean(),
        ("sum", "mean"): mean.sum(),
        ("mean", "sum"): (to_y.sum(1) + to_x.sum(1)).mean(),
        ("mean", "max"): torch.maximum(to_y.amax(1), to_x.amax(1)).mean(),
    }
    for (batch, point), expected in cases.items():
        loss, _ = ops.chamfer_distance(x, y, batch_reduction=batch, point_reduction=point)
        torch.testing.assert_close(loss, expected)
    loss, _ = ops.chamfer_distance(x, y, weights=weights)
    torch.testing.assert_close(loss, (mean * weights).sum() / weights.sum())
    loss, _ = ops.chamfer_distance(x, y, single_directional=True)
    torch.testing.assert_close(loss, to_y.mean(1).mean())


def test_chamfer_normals_compare_those_of_nearest_points(clouds):
    normals = torch.nn.functional.normalize(clouds, dim=-1)
    _, same = ops.chamfer_distance(clouds, clouds, x_normals=normals, y_normals=-normals)
    _, signed = ops.chamfer_distance(
        clouds, clouds, x_normals=normals, y_normals=-normals, abs_cosine=False
    )
    torch.testing.assert_close(same, torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(signed, torch.tensor(4.0))  # 1 − (−1), both directions


def test_arguments_are_pytorch3ds():
    import inspect

    names = {  # pytorch3d 0.7.9
        "sample_farthest_points": "points lengths K random_start_point",
        "knn_points": "p1 p2 lengths1 lengths2 norm K version return_nn return_sorted",
        "knn_gather": "x idx lengths",
        "chamfer_distance": "x y x_lengths y_lengths x_normals y_normals weights batch_reduction "
        "point_reduction norm single_directional abs_cosine",
    }
    for name, expected in names.items():
        assert list(inspect.signature(getattr(ops, name)).parameters) == expected.split()


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="'numpy': choose one of torch, pytorch3d"):
        ops.use_backend("numpy").__enter__()


def test_backends_agree(clouds):
    pytest.importorskip("pytorch3d")
    calls = [
        lambda: ops.sample_farthest_points(clouds, K=20)[1],
        lambda: ops.knn_points(clouds, clouds, K=6).idx,
        lambda: ops.chamfer_distance(clouds[:, :30], clouds[:, 30:])[0],
    ]
    for call in calls:
        with ops.use_backend("torch"):
            ours = call()
        with ops.use_backend("pytorch3d"):
            torch.testing.assert_close(ours, call())
