import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from dual_denoising import ops
from dual_denoising.errors import InputError
from dual_denoising.ops import operators, point_ops, torch_backend
from tests.conftest import assert_refuses

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


@pytest.fixture(params=[False, True], ids=["float32", "autocast"])
def autocast(request):
    with torch.autocast(DEVICE, torch.bfloat16, enabled=request.param):
        yield


def brute_fps(points: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        gaps = ((points[:, None] - points[chosen]) ** 2).sum(-1).min(1)
        chosen.append(int(gaps.argmax()))
    return chosen


def brute_chamfer(x: np.ndarray, y: np.ndarray) -> float:
    gaps = ((x[:, None].astype(np.float64) - y[None]) ** 2).sum(-1)
    return gaps.min(1).mean() + gaps.min(0).mean()


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
    unsorted = ops.knn_indices(centers, clouds, 9, return_sorted=False)
    assert torch.equal(unsorted.sort(-1).values, found.idx.sort(-1).values)


@pytest.mark.usefixtures("autocast")
def test_chamfer_is_brute_force(clouds):
    x, y = clouds[:, :30], clouds[:, 30:80] * 0.9
    loss, normals = ops.chamfer_distance(x, y, batch_reduction=None)
    assert normals is None
    expected = [brute_chamfer(a.cpu().numpy(), b.cpu().numpy()) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(loss.cpu().numpy(), expected, rtol=1e-5)
    for reduction in ("mean", "sum"):
        reduced, _ = ops.chamfer_distance(x, y, batch_reduction=reduction)
        torch.testing.assert_close(reduced, getattr(loss, reduction)())


def test_half_precision_input_is_raised_before_any_arithmetic(clouds):
    half = clouds.bfloat16()
    expected = ops.knn_points(half[:, :9].float(), half.float(), K=5)
    assert torch.equal(ops.knn_points(half[:, :9], half, K=5).idx, expected.idx)


def test_chamfer_gradient_is_finite_and_right(clouds):
    x, y = clouds[:1, :6].double().requires_grad_(), clouds[:1, 6:14].double()
    assert torch.autograd.gradcheck(lambda a: ops.chamfer_distance(a, y)[0], x)
    same = clouds[:1].clone().requires_grad_()
    loss, _ = ops.chamfer_distance(same, clouds[:1])  # distance 0 everywhere
    (slope,) = torch.autograd.grad(loss, same, create_graph=True)
    assert slope.isfinite().all()
    assert torch.autograd.grad(slope.square().sum(), same)[0].isfinite().all()


def test_more_than_there_is_is_refused(clouds):
    few = clouds[:, :3]
    for call in (
        lambda: ops.sample_farthest_points(few, K=5),
        lambda: ops.knn_points(few, few, K=5),
        lambda: ops.knn_indices(few, few, 5),
    ):
        assert_refuses("num_points is 3: 5", call)


@pytest.mark.parametrize("size", [1, 17, 64, 96, 333, 1024])
def test_the_nearest_are_all_found_whatever_the_size(size):
    points = torch.rand(4, size, 3, generator=torch.Generator().manual_seed(size)).to(DEVICE)
    gaps = torch.cdist(
        points[:, :1].double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    for count in {1, min(16, size), min(32, size), size}:
        found = ops.knn_points(points[:, :1], points, K=count).dists.double().sqrt()
        torch.testing.assert_close(found, gaps.sort(-1).values[..., :count], atol=1e-6, rtol=1e-5)


def test_large_batches_are_cut_into_pieces(clouds, monkeypatch):
    calls = [
        lambda: ops.sample_farthest_points(clouds, K=9)[1],
        lambda: ops.knn_points(clouds[:, :7], clouds, K=4).idx,
        lambda: ops.chamfer_distance(clouds[:, :20], clouds[:, 20:60], batch_reduction=None)[0],
    ]
    whole = [call() for call in calls]
    monkeypatch.setattr(torch_backend, "AT_ONCE", {False: 1000, True: 1000})
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


def test_a_point_that_is_no_number_is_nobodys_neighbour(clouds, backend):
    """On a GPU an index beyond the cloud would end the process."""
    x, y = clouds[:, :9].clone(), clouds[:, 9:29].clone()
    x[:, 4], y[:, 7] = torch.nan, torch.nan
    idx = ops.knn_points(clouds[:, :3], y, K=20).idx
    assert 0 <= idx.min() <= idx.max() < 20
    assert ops.sample_farthest_points(y, K=20)[1].max() < 20
    found = operators.closest(x, y, backend)[2:]
    assert max(int(idx.max()) for idx in found) < 20


def test_of_equal_distances_the_first_point_is_taken_as_farthest():
    square = torch.tensor([[[0.0, 0, 0], [1, 1, 0], [-1, 1, 0], [1, -1, 0], [-1, -1, 0]]])
    assert ops.sample_farthest_points(square.to(DEVICE), K=5)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_operators_are_what_the_compiler_is_told(clouds):
    x, y = clouds[:, :9].clone().requires_grad_(), clouds[:, 9:20]
    calls = [
        (operators.closest, (x, y, "torch")),
        (operators.farthest_indices, (clouds, 7, "torch")),
        (operators.nearest_indices, (y, clouds, 4, True, "torch")),
    ]
    for operator, given in calls:
        assert set(torch.library.opcheck(operator, given).values()) == {"SUCCESS"}


COMPILE = """
import json, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dual_denoising.ops import triton_backend

for kind, sizes, warps in json.loads(sys.argv[1]):
    kernel = getattr(triton_backend, kind)
    floats = {"points", "queries", "x", "y", "x_gap", "y_gap", "x_slope", "y_slope", "x_grad",
              "y_grad"}
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
    sets = {"N": point_ops.LARGEST_SET, "M": point_ops.LARGEST_SET}
    cases = [
        ("farthest_kernel", {"BLOCK": 1024}, 4),
        ("farthest_kernel", {"BLOCK": point_ops.LARGEST_CLOUD}, 16),
        ("nearest_kernel", {"BLOCK": 1024}, 1),
        ("nearest_kernel", {"BLOCK": point_ops.LARGEST_CLOUD}, 16),
        ("closest_kernel", {"N": 32, "M": 32}, 1),
        ("closest_kernel", sets, 16),
        ("closest_backward_kernel", {"N": 32, "M": 32}, 1),
        ("closest_backward_kernel", sets, 16),
    ]
    done = without_interpreter(COMPILE, json.dumps(cases))
    assert done.returncode == 0, done.stderr


def without_interpreter(script, *arguments):
    compiled = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=compiled)


def test_triton_on_a_cpu_is_refused(backend):
    if torch.cuda.is_available() or backend != "triton":
        pytest.skip("asks what happens without a GPU")
    script = "import torch; from dual_denoising import ops\nwith ops.use_backend('triton'):\n"
    script += "    ops.sample_farthest_points(torch.rand(1, 9, 3), K=2)"
    assert "InputError: backend is 'triton'" in without_interpreter(script).stderr


@pytest.mark.parametrize("name", ["numpy", "pytorch3d"])
def test_a_backend_that_is_unknown_or_absent_is_named(name):
    if importlib.util.find_spec(name) and name == "pytorch3d":
        pytest.skip("pytorch3d is installed")
    with pytest.raises(InputError, match=f"backend .* is '{name}'"):
        ops.use_backend(name).__enter__()


def test_pytorch3d_agrees(clouds):
    pytest.importorskip("pytorch3d", reason="pytorch3d is not installed")
    calls = [
        lambda: ops.sample_farthest_points(clouds, K=20)[1],
        lambda: ops.knn_points(clouds, clouds, K=6).idx,
        lambda: ops.chamfer_distance(clouds[:, :30], clouds[:, 30:])[0],
    ]
    for call in calls:
        ours = call()
        with ops.use_backend("pytorch3d"):
            torch.testing.assert_close(ours, call())
