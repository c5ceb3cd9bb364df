import matplotlib.pyplot as plt
import numpy as np

from dual_denoising.reports import pictures


def test_projection_looks_from_the_front_right_and_above():
    view = pictures.project(np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0.0]]))
    up, front, right, middle = view
    assert up[1] > 0.9  # y is up
    assert front[2] > middle[2]  # what is in front is nearer
    assert front[0] < 0 < right[0]  # seen from the right, the front lies to the left
    assert front[1] < 0  # seen from above, the front lies low
    np.testing.assert_allclose(np.linalg.norm(view, axis=1), [1, 1, 1, 0], atol=1e-12)


def test_a_grid_draws_every_cloud_in_its_cell(tmp_path):
    rng = np.random.default_rng(0)
    full, none = rng.uniform(-1, 1, (400, 3)), np.zeros((0, 3))
    rows, titles = [[full, none], [none, full]], [["a", "b"]]
    pictures.cloud_grid(rows, tmp_path / "grid.png", titles, ["x", "y"])
    ink = (plt.imread(tmp_path / "grid.png")[..., :3] < 0.9).any(-1)
    share = [[half.mean() for half in np.array_split(row, 2, 1)] for row in np.array_split(ink, 2)]
    assert min(share[0][0], share[1][1]) > 5 * max(share[0][1], share[1][0])


def test_confusions_are_percent_of_the_true_class(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt.Axes, "imshow", lambda self, image, **_: drawn.append(image))
    counts = np.array([[3, 1], [0, 0]])
    pictures.confusion_matrix(counts, ["bed", "sofa"], tmp_path / "c.png", "title")
    np.testing.assert_allclose(drawn[0], [[75, 25], [0, 0]])
