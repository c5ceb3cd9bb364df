import importlib.util
import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from dual_denoising import ops
from dual_denoising.errors import InputError
from dual_denoising.ops import operators as searches
from dual_denoising.ops import torch_backend as torch_ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.fixture(autouse=True, params=["torch", "triton"])
def backend(request):
    """Every test holds for both backends; without a GPU Triton's kernels run in its interpreter."""
    if request.param == "triton" and not HAS_TRITON:
        pytest.skip("triton is not installed: it comes with torch on Linux")
    with ops.use_backend(request.param):
        yield request.param


@pytest.fixture
def clouds(clouds):
    return clouds.to(DEVICE)


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
    with torch.autocast(DEVICE, torch.bfloat16, enabled=request.param):
        yield


@pytest.mark.usefixtures("autocast")
def test_farthest_points_are_brute_force_ones(clouds):
    points, idx = ops.sample_farthest_points(clouds, K=20)
    for cloud, chosen, rows in zip(clouds, points, idx, strict=True):
        assert rows.tolist() == brute_fps(cloud.double().cpu().numpy(), 20)
        assert torch.equal(chosen, cloud[rows])


@pytest.mark.usefixtures("autocast")
def test_neighbours_are_the_kd_trees(clouds):
    centers = clouds[:, :7]
    found = ops.knn_points(centers, clouds, K=9, return_nn=True)
    for b, cloud in enumerate(clouds.double().cpu().numpy()):
        distance, rows = cKDTree(cloud).query(cloud[:7], 9)
        assert np.array_equal(found.idx[b].cpu().numpy(), rows)
        np.testing.assert_allclose(found.dists[b].cpu().numpy(), distance**2, atol=1e-6)
        assert torch.equal(found.knn[b], clouds[b][found.idx[b]])


@pytest.mark.usefixtures("autocast")
def test_chamfer_is_brute_force(clouds):
    x, y = clouds[:, :30], clouds[:, 30:80] * 0.9
    loss, normals = ops.chamfer_distance(x, y, batch_reduction=None)
    assert normals is None
    expected = [brute_chamfer(a.cpu().numpy(), b.cpu().numpy()) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(loss.cpu().numpy(), expected, rtol=1e-5)


def test_half_precision_input_is_raised_before_any_arithmetic(clouds):
    half = clouds.bfloat16()
    expected = ops.knn_points(half[:, :9].float(), half.float(), K=5)
    assert torch.equal(ops.knn_points(half[:, :9], half, K=5).idx, expected.idx)


def test_chamfer_gradient_is_finite_and_right(clouds):
    x, y = clouds[:1, :6].double().requires_grad_(), clouds[:1, 6:14].double()
    assert torch.autograd.gradcheck(lambda a: ops.chamfer_distance(a, y)[0], x)
    same = clouds[:1].clone().requires_grad_()
    ops.chamfer_distance(same, clouds[:1])[0].backward()  # distance 0 everywhere
    assert same.grad.isfinite().all()


def test_lengths_follow_pytorch3d(clouds):
    lengths = torch.tensor([96, 4, 10, 1, 50], device=DEVICE)
    points, idx = ops.sample_farthest_points(clouds, lengths, K=12)
    assert (idx[1] == -1).sum() == 8
    assert (points[1, 4:] == 0).all()
    for b, n in enumerate(lengths.tolist()):
        k = min(12, n)
        assert idx[b, :k].tolist() == brute_fps(clouds[b, :n].double().cpu().numpy(), k)
    found = ops.knn_points(clouds, clouds, lengths, lengths, K=3)
    assert (found.idx[3] == 0).all()
    assert (found.dists[3] == 0).all()
    assert (found.idx[2, :10] < 10).all()
    assert (found.dists[2, 10:] == 0).all()
    loss, _ = ops.chamfer_distance(clouds, clouds * 0.5, lengths, lengths, batch_reduction=None)
    expected = [
        brute_chamfer(c[:n], c[:n] * 0.5)
        for c, n in zip(clouds.cpu().numpy(), lengths.tolist(), strict=True)
    ]
    np.testing.assert_allclose(loss.cpu().numpy(), expected, rtol=1e-5)


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
    lengths = torch.tensor([0, 96, 96, 96, 96], device=DEVICE)
    loss, _ = ops.chamfer_distance(clouds, clouds * 0.9, lengths, lengths, batch_reduction=None)
    assert loss[0] == 0
    assert loss.isfinite().all()
    assert ops.chamfer_distance(clouds, clouds * 0.9, weights=torch.zeros(5, device=DEVICE))[0] == 0


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
    x, y, weights = clouds[:, :8], clouds[:, 8:20], torch.tensor([1.0, 0, 2, 1, 0], device=DEVICE)
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
    torch.testing.assert_close(same.item(), 0.0, atol=1e-6, rtol=0)
    torch.testing.assert_close(signed.item(), 4.0)  # 1 − (−1), both directions


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


@pytest.mark.parametrize(("first", "second"), [(32, 32), (5, 24), (1, 3), (128, 70), (130, 9)])
def test_small_sets_have_the_torch_backends_distances_and_gradients(first, second):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, first, 3, generator=generator).to(DEVICE).requires_grad_()
    y = torch.randn(3, second, 3, generator=generator).to(DEVICE).requires_grad_()
    weights = torch.tensor([1.0, 0.5, 2.0], device=DEVICE)

    def losses():
        for norm in (1, 2):
            loss, _ = ops.chamfer_distance(x, y, norm=norm, weights=weights, point_reduction="sum")
            yield loss, *torch.autograd.grad(loss, (x, y))

    ours = list(losses())
    with ops.use_backend("torch"):
        double = x.double(), y.double()
        for (loss, *slopes), (same, *expected), norm in zip(ours, losses(), (1, 2), strict=True):
            assert torch.equal(loss, same)
            torch.testing.assert_close(slopes, expected)
            exact, _ = ops.chamfer_distance(*double, norm=norm, weights=weights.double(),
                                            point_reduction="sum")  # fmt: skip
            torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 17, 64, 96, 333, 1024])
def test_smallest_values_are_all_found(size):
    values = torch.rand(4, 3, size, generator=torch.Generator().manual_seed(size))
    for count in {1, min(16, size), min(32, size), size}:
        found = values.gather(2, torch_ops.smallest(values, count, ordered=True))
        assert torch.equal(found, values.sort(-1).values[..., :count])


def test_large_batches_are_cut_into_pieces(clouds, monkeypatch):
    calls = [
        lambda: ops.sample_farthest_points(clouds, K=9)[1],
        lambda: ops.knn_points(clouds[:, :7], clouds, K=4).idx,
        lambda: ops.chamfer_distance(clouds[:, :20], clouds[:, 20:60], batch_reduction=None)[0],
    ]
    whole = [call() for call in calls]
    monkeypatch.setattr(torch_ops, "AT_ONCE", {False: 1000, True: 1000})
    for call, expected in zip(calls, whole, strict=True):
        assert torch.equal(call(), expected)


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_asked_for_or_given_is_nothing_found(clouds, count):
    points, idx = ops.sample_farthest_points(clouds[: 5 - count], K=0)
    assert (points.shape, idx.shape) == ((5 - count, 0, 3), (5 - count, 0))
    assert ops.sample_farthest_points(clouds[:0], K=count)[1].shape == (0, count)
    assert ops.knn_points(clouds[:, :4], clouds, K=0).idx.shape == (5, 4, 0)
    assert ops.knn_points(clouds[:, :0], clouds, K=count).dists.shape == (5, 0, count)
    assert ops.knn_points(clouds[:0], clouds[:0], K=count).idx.shape == (0, 96, count)


def test_clouds_that_do_not_fit_each_other_are_refused(clouds):
    for other in (clouds[:1], clouds[..., :2]):  # in tests the annotations refuse them as well
        with pytest.raises(ValueError, match="they must agree in number and in dimensions"):
            ops._check_pair(clouds, other)
        for call in (ops.knn_points, ops.chamfer_distance, partial(ops.knn_indices, K=2)):
            with pytest.raises((ValueError, TypeError)):
                call(clouds, other)


def test_what_padding_holds_is_never_read(clouds):
    lengths = torch.tensor([9, 1, 4, 9, 7], device=DEVICE)
    absent = torch.arange(9, device=DEVICE) >= lengths[:, None]
    slopes = []
    for filler in (0.0, float("nan")):
        x = clouds[:, :9].masked_fill(absent[..., None], filler).requires_grad_()
        y = clouds[:, 9:20].clone().requires_grad_()
        loss, _ = ops.chamfer_distance(x, y, lengths)
        slopes.append((loss, *torch.autograd.grad(loss, (x, y))))
        assert ops.knn_points(y, x, None, lengths, K=3).idx.max() < 9
    for plain, poisoned in zip(*slopes, strict=True):
        torch.testing.assert_close(plain, poisoned)


def test_a_point_that_is_no_number_is_nobodys_neighbour(clouds):
    """On a GPU an index beyond the cloud would end the process."""
    x, y = clouds[:, :9].clone(), clouds[:, 9:29].clone()
    x[:, 4], y[:, 7] = torch.nan, torch.nan
    idx = ops.knn_points(clouds[:, :3], y, K=20).idx
    assert 0 <= idx.min() <= idx.max() < 20
    assert ops.sample_farthest_points(y, K=20)[1].max() < 20
    _, normals = ops.chamfer_distance(x, y, x_normals=x, y_normals=y)
    assert normals.isnan()
    served = ops._triton(128, x, y)
    assert max(int(idx.max()) for idx in searches.closest(x, y, None, None, 2, served)[2:]) < 20


def test_second_order_gradients_exist(clouds):
    x = clouds[:, :6].clone().requires_grad_()
    loss, _ = ops.chamfer_distance(x, clouds[:, 6:14])
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.square().sum(), x)
    assert curve.abs().sum() > 0


def test_of_equal_distances_the_first_point_is_taken_as_farthest():
    square = torch.tensor([[[0.0, 0, 0], [1, 1, 0], [-1, 1, 0], [1, -1, 0], [-1, -1, 0]]])
    assert ops.sample_farthest_points(square.to(DEVICE), K=5)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_indices_of_neighbours_are_those_of_knn_points(clouds):
    lengths = torch.tensor([96, 4, 10, 1, 50], device=DEVICE)
    few, asked = clouds[:, :9], torch.tensor([9, 4, 9, 1, 9], device=DEVICE)
    expected = ops.knn_points(few, clouds, asked, lengths, K=6).idx
    assert torch.equal(ops.knn_indices(few, clouds, 6, asked, lengths), expected)
    plain = ops.knn_indices(few.requires_grad_(), clouds, 6, return_sorted=False)
    assert not plain.requires_grad
    assert torch.equal(plain.sort(-1).values, ops.knn_points(few, clouds, K=6).idx.sort(-1)[0])


def test_searches_are_what_the_compiler_is_told(clouds):
    x, y = clouds[:, :9].clone().requires_grad_(), clouds[:, 9:20]
    lengths = torch.tensor([9, 1, 4, 9, 9], device=DEVICE)
    calls = [
        (searches.closest, (x, y, lengths, None, 2, False)),
        (searches.farthest_indices, (clouds, None, None, 7, False)),
        (searches.nearest_indices, (y, clouds, None, 4, 2, True, False)),
    ]
    for search, given in calls:
        assert set(torch.library.opcheck(search, given).values()) == {"SUCCESS"}


COMPILE = """
import json, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dual_denoising.ops import triton_backend as triton_ops

for kind, sizes, warps in json.loads(sys.argv[1]):
    kernel = getattr(triton_ops, kind)
    floats = {"points", "queries", "x", "y", "x_gap", "y_gap", "x_slope", "y_slope", "x_gradient",
              "y_gradient"}
    numbers = {"size", "wanted", "per_cloud", "n", "m"}
    signature = {
        name: "i32" if name in numbers else "*fp32" if name in floats else "*i64"
        for name in kernel.arg_names
    } | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=sizes)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    for capability in (80, 86, 90):
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert made.asm["cubin"], kind
        assert "fma" not in made.asm["ptx"], kind
"""


def test_kernels_compile_for_gpus_that_are_not_here(backend):
    """A100, RTX 3090, H100, at the default sizes and the largest; no multiply-add is fused."""
    if backend != "triton":
        pytest.skip("torch compiles nothing")
    from dual_denoising.ops import LARGEST_CLOUD, LARGEST_SET

    sets = {"N": LARGEST_SET, "M": LARGEST_SET}
    cases = [
        ("farthest_kernel", {"BLOCK": 1024}, 4),
        ("farthest_kernel", {"BLOCK": LARGEST_CLOUD}, 16),
        ("nearest_kernel", {"NORM": 2, "BLOCK": 1024}, 1),
        ("nearest_kernel", {"NORM": 1, "BLOCK": LARGEST_CLOUD}, 16),
        ("closest_kernel", {"NORM": 2, "N": 32, "M": 32}, 1),
        ("closest_kernel", {"NORM": 1, **sets}, 16),
        ("closest_backward_kernel", {"NORM": 2, "N": 32, "M": 32}, 1),
        ("closest_backward_kernel", {"NORM": 1, **sets}, 16),
    ]
    compiled = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(cases)],
        capture_output=True, text=True, env=compiled,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_triton_on_a_cpu_is_refused_in_words(clouds):
    if torch.cuda.is_available() or not HAS_TRITON:
        pytest.skip("asks what happens without a GPU")
    script = "import torch; from dual_denoising import ops\nwith ops.use_backend('triton'):\n"
    script += "    ops.sample_farthest_points(torch.rand(1, 9, 3), K=2)"
    compiled = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=compiled
    )
    assert done.stderr.strip().endswith("on a CPU; choose torch or auto")


def test_unknown_backend_is_named():
    with pytest.raises(InputError, match="'numpy': choose one of auto, torch, triton, pytorch3d"):
        ops.use_backend("numpy").__enter__()
    if not importlib.util.find_spec("pytorch3d"):
        with pytest.raises(InputError, match="'pytorch3d', which is not installed"):
            ops.use_backend("pytorch3d").__enter__()


def test_pytorch3d_agrees(clouds):
    pytest.importorskip("pytorch3d")
    calls = [
        lambda: ops.sample_farthest_points(clouds, K=20)[1],
        lambda: ops.knn_points(clouds, clouds, K=6).idx,
        lambda: ops.chamfer_distance(clouds[:, :30], clouds[:, 30:])[0],
    ]
    for call in calls:
        ours = call()
        with ops.use_backend("pytorch3d"):
            torch.testing.assert_close(ours, call())
