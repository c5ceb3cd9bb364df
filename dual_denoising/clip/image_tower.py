"""A small image tower in CLIP's space: pictures of named shapes -> CLIP's features of the names.

The text side is fixed, as LiT (Zhai et al. 2022) fixes the image side.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import binomtest
from timm.models import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from dual_denoising.clip.features import Text
from dual_denoising.clip.micro_clip import Training, Views, counts, normalised
from dual_denoising.data import shipped
from dual_denoising.data.sources import Source
from dual_denoising.data.storage import fingerprint
from dual_denoising.errors import check
from dual_denoising.keyed_random import Stream, generator
from dual_denoising.model.interface import Pretrained

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # of pixels


class ImageTower(nn.Module, Pretrained):
    """timm's ViT on pictures of ``size`` pixels, and a linear layer to CLIP's width.

    patch: pixels of a token's side. width, depth, heads: of the ViT. feature_width: E. All features
    have the mean length of the text features that were learned.
    """

    def __init__(
        self,
        size: int = 64,
        patch: int = 8,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        feature_width: int = 512,
    ):
        super().__init__()
        self.image_size = size
        self.length = nn.Buffer(torch.ones(()))
        self.vit = VisionTransformer(
            size,
            patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=feature_width,
            global_pool="avg",
            drop_path_rate=0.1,
        )

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n e"]:
        return self.length * normalize(self.vit(pixels), dim=-1)


class ImageTeacher:
    """The tower with the text features that it learned: what caching asks of a CLIP.

    tower: the folder that scripts/train_image_tower.py wrote. Features are named after the CLIP of
    ``text``, since they lie in its space.
    """

    def __init__(self, tower: str, text: Text, device: str = "cpu", precision: str = "fp32"):
        check("precision", precision, precision == "fp32", "the image tower takes fp32 alone")
        self.tower = ImageTower.from_pretrained(shipped(tower)).requires_grad_(False).to(device)
        self.text, self.precision, self.device = text, precision, device
        model, _, pretrained = text.teacher.partition("/")
        self.names, self.width = (model, pretrained), text.width
        self.image_size = self.tower.image_size
        resize = Resize((self.image_size, self.image_size))
        self.preprocess = Compose([resize, ToTensor(), Normalize(MEAN, STD)])

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the tower's weights."""
        return fingerprint(*(w.cpu().numpy() for w in self.tower.state_dict().values()))

    @torch.inference_mode()
    def encode_images(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n e"]:
        return self.tower(pixels.to(self.device)).cpu()

    def encode_names(self, names: Sequence[str], prompts: Sequence[str]) -> Float[Tensor, "c p e"]:
        """The text features as they are; ``prompts`` must be theirs."""
        own = list(self.text.prompts)
        check("prompts", list(prompts), list(prompts) == own, f"give those of the text, {own}")
        return self.text.lookup(names)


def train(
    tower: ImageTower, text: Text, views: Views, training: Training, device: torch.device
) -> list[float]:
    """Trains with cross-entropy over all names, each drawn equally often. Returns every loss."""
    class_weights = text.class_weights(views.source.class_names).to(device)
    labels = views.source.labels
    logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32, device=device))
    tower.to(device).train()
    optimizer = create_optimizer_v2(tower, "adamw", training.lr, training.weight_decay)
    optimizer.add_param_group({"params": [logit_scale], "weight_decay": 0.0})
    shapes = [np.flatnonzero(labels == name) for name in np.unique(labels)]
    rng = generator(Stream.TOWER, training.seed)

    def loss() -> Tensor:
        names = rng.integers(len(shapes), size=training.batch_size)
        rows = np.array([rng.choice(shapes[name]) for name in names])
        pixels = normalised(views.sample(rows, rng), MEAN, STD).to(device)
        scores = logit_scale.exp() * normalize(tower(pixels), dim=-1) @ class_weights.T
        return cross_entropy(scores, torch.from_numpy(labels[rows]).to(device))

    return training.minimise(loss, optimizer, logit_scale)


@torch.inference_mode()
def evaluate(tower: ImageTower, text: Text, views: Views, taught: Sequence[str]) -> dict:
    """Zero-shot accuracy over the source's names, of one picture a shape and of their mean.

    taught: the names of training; accuracy is also given for the shapes of these names, of the
    others, and of the others with the taught names left out.
    """
    tower.eval().cpu()
    encoded = [tower(normalised(p, MEAN, STD)) for p in views.pictures]
    features = torch.stack([normalize(each, dim=-1) for each in encoded])  # (n, views, E)
    names, labels = views.source.class_names, views.source.labels
    weights = text.class_weights(names)
    known = {text.spelling(name) for name in taught}
    new = np.array([text.spelling(name) not in known for name in names])
    one, mean = (features[:, 0] @ weights.T).numpy(), (features.mean(1) @ weights.T).numpy()
    right, unknown = mean.argmax(1) == labels, new[labels]
    among_new = np.where(new, mean, -np.inf).argmax(1) == labels
    share = {
        "top1_one_view": one.argmax(1) == labels,
        "top1": right,
        "top1_taught": right[~unknown],
        "top1_untaught": right[unknown],
        "top1_untaught_among_untaught": among_new[unknown],
    }
    return {
        "n": len(labels),
        "names": len(names),
        "n_taught": int((~unknown).sum()),
        "names_taught": int((~new).sum()),
        "interval": list(binomtest(right.sum(), len(right)).proportion_ci(method="wilson")),
    } | {name: float(hits.mean()) if len(hits) else None for name, hits in share.items()}


def train_and_test(
    tower: ImageTower,
    text: Text,
    taught: Views,
    tests: Sequence[Source],
    training: Training,
    folder: Path,
    device: torch.device,
) -> tuple[dict[str, dict], dict]:
    """Draws, trains, saves to ``folder`` and evaluates: results by test set, and counts."""
    names = taught.source.class_names
    tower.length.fill_(text.lookup(names).norm(dim=-1).mean())
    losses = train(tower, text, taught, training, device)
    tower.eval().cpu().save_pretrained(folder)
    results = {}
    for test in tests:
        views = replace(taught, source=test, seed=1)
        results[f"{test.name} {test.split}"] = evaluate(tower, text, views, names)
    return results, counts(tower, taught, losses) | {"names": len(names)}
