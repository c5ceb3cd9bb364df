"""A small real CLIP: open_clip's two towers, trained on rendered primitives and their captions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch
from scipy.stats import binomtest
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import normalize
from tqdm import tqdm

from dual_denoising.clip.features import class_weights, read_prompts
from dual_denoising.clip.towers import OpenClip, quiet
from dual_denoising.clip.views import Renderer, draw
from dual_denoising.data import shipped
from dual_denoising.data.primitives import Primitives
from dual_denoising.data.sources import read_names
from dual_denoising.data.storage import atomic, write_text
from dual_denoising.errors import check, check_number, reading
from dual_denoising.keyed_random import Stream, generator, key

CONFIG = "open_clip_config.json"
TEMPLATES = read_prompts("micro")


@dataclass
class Views(Dataset):
    """Pictures (views, size, size, 3) of every shape from its own ``count`` random cameras.

    The cameras are a function of (seed, index). A quarter of the shapes is drawn as clouds, without
    colour: the teacher meets both. workers: processes that draw.
    """

    source: Any
    count: int
    size: int
    seed: int = 0
    workers: int = 0

    def __len__(self) -> int:
        return len(self.source.labels)

    def cloud(self, index: int) -> bool:
        return generator(Stream.AS_CLOUD, self.seed, index).random() < 0.25

    def __getitem__(self, index: int) -> np.ndarray:
        rng = generator(Stream.VIEWS, self.seed, index)
        azimuths = rng.uniform(0, 360) + np.arange(self.count) * 360 / self.count
        cameras = [(azimuth, rng.uniform(-10, 50)) for azimuth in azimuths]
        pictures = draw(Renderer(cameras, self.size), self.source, index, self.cloud(index))
        return np.stack([np.asarray(picture) for picture in pictures])

    @cached_property
    def pictures(self) -> np.ndarray:
        """Of all shapes, (n, views, size, size, 3)."""
        spawn = "spawn" if self.workers else None  # OpenGL does not survive a fork
        loader = DataLoader(self, None, num_workers=self.workers, multiprocessing_context=spawn)
        return np.stack([np.asarray(p) for p in tqdm(loader, "drawing views", unit="shape")])

    def sample(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A random picture of each of these shapes, augmented, (B, size, size, 3)."""
        chosen = rng.integers(self.count, size=len(rows))
        return augment(self.pictures[rows, chosen], rng)


def size_words(extents: np.ndarray) -> list[str]:
    """What a shape's extents (x, y, z) let a caption say."""
    width, height, depth = extents
    across = max(width, depth)
    words = ["tall"] if height > 1.6 * across else ["flat", "low"] if height < 0.3 * across else []
    if across > 2.5 * min(width, depth):
        words += ["long", "narrow"]
    return words


def caption(source: Primitives, index: int, cloud: bool, rng: np.random.Generator) -> str:
    """A caption drawn for a shape: its class or a synonym, often its colour or proportions."""
    recipe = source.recipes[source.labels[index]]
    names = [recipe.name.replace("_", " "), *recipe.synonyms]
    words = [names[0] if rng.random() < 0.6 else names[rng.integers(len(names))]]
    if not cloud and rng.random() < 0.5:
        words.insert(0, source.color(index))
    sizes = size_words(np.ptp(source.read(index), axis=0))
    if sizes and rng.random() < 0.3:
        words.insert(0, sizes[rng.integers(len(sizes))])
    said = " ".join(words)
    text = TEMPLATES[rng.integers(len(TEMPLATES))].format(said)
    return text.replace(f"a {said}", f"an {said}") if said[0] in "aeiou" else text


@dataclass
class Training:
    """steps of batch_size pairs; AdamW on a cosine from lr to 0, times a linear warm-up."""

    steps: int = 1200
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 100
    seed: int = 0

    def __post_init__(self):
        for name, low in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("seed", 0)):
            check_number(f"training.{name}", getattr(self, name), low)
        for name in ("lr", "weight_decay"):
            check_number(f"training.{name}", getattr(self, name), whole=False)

    def rate(self, step: int) -> float:
        """Share of ``lr`` at a step, from 0."""
        warm = min((step + 1) / max(self.warmup, 1), 1.0)
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def minimise(
        self, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, scale: nn.Parameter
    ) -> list[float]:
        """Takes all steps, each on a loss that is drawn anew; returns the losses.

        scale: the logarithm of the logits' factor, kept between 1 and 100 as CLIP's.
        """
        scheduler, losses = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate), []
        for _ in tqdm(range(self.steps), "training", unit="step"):
            value = loss()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                scale.clamp_(0, np.log(100))
            losses.append(value.detach())
        return torch.stack(losses).tolist()


def train(
    model: open_clip.CLIP, tokenize, views: Views, training: Training, device: torch.device
) -> list[float]:
    """Trains with open_clip's contrastive loss; the losses of all steps."""
    optimizer = create_optimizer_v2(
        model, "adamw", training.lr, training.weight_decay, betas=(0.9, 0.98), eps=1e-6
    )
    size, most = training.batch_size, len(views)
    check("training.batch_size", size, size <= most, f"draw more shapes than {most} (per_class=)")
    rng, contrastive = generator(Stream.PAIRS, training.seed), open_clip.ClipLoss()
    model.to(device).train()

    def loss() -> Tensor:
        rows = rng.choice(most, size, replace=False)
        shown = views.sample(rows, rng)
        texts = [caption(views.source, row, views.cloud(row), rng) for row in rows.tolist()]
        pixels = normalised(shown, model.visual.image_mean, model.visual.image_std).to(device)
        return contrastive(*model(pixels, tokenize(texts).to(device))[:3])

    return training.minimise(loss, optimizer, model.logit_scale)


def augment(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random flips and shifts by up to a sixteenth, on white, of pictures (B, H, W, 3)."""
    size, out = pictures.shape[1], np.empty_like(pictures)
    reach = size // 16
    padded = np.pad(pictures, ((0, 0), (reach, reach), (reach, reach), (0, 0)), constant_values=255)
    for i, picture in enumerate(padded):
        row, column = rng.integers(2 * reach + 1, size=2)
        crop = picture[row : row + size, column : column + size]
        out[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return out


def normalised(pictures: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels (B, 3, H, W) as the tower takes them, of pictures (B, H, W, 3) of its size."""
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    return normalize(pixels, list(mean), list(std))


@torch.inference_mode()
def evaluate(clip: OpenClip, views: Views, held_out: Sequence[str] = ()) -> dict:
    """Zero-shot accuracy over all class names, and retrieval R@1 of shapes and their captions.

    One view per shape. Retrieval is among all of them, each with a caption drawn for it; captions
    that are word for word the same count as right. held_out: names that training did not see.
    """
    source, visual = views.source, clip.tower.visual
    parts = np.array_split(views.pictures[:, 0], 16)
    pixels = [normalised(part, visual.image_mean, visual.image_std) for part in parts]
    images = nn.functional.normalize(torch.cat([clip.encode_images(p) for p in pixels]), dim=-1)
    names = [name.replace("_", " ") for name in source.class_names]
    guesses = images @ class_weights(clip.encode_names(names, TEMPLATES)).T
    rng, rows = generator(Stream.CAPTIONS, 0), range(len(images))
    texts = [caption(source, i, views.cloud(i), rng) for i in rows]
    encoded = nn.functional.normalize(clip.encode_texts(texts), dim=-1)
    similar, words = (images @ encoded.T).numpy(), np.array(texts)
    right, cloud = guesses.argmax(1).numpy() == source.labels, np.array([*map(views.cloud, rows)])
    groups = {"meshes": right[~cloud], "clouds": right[cloud]}
    new = np.isin(np.array(source.class_names)[source.labels], held_out)
    if 0 < new.mean() < 1:
        groups |= {"of seen": right[~new], "of held out": right[new]}
    return {
        "accuracy": float(right.mean()),
        "interval": list(binomtest(right.sum(), len(right)).proportion_ci(method="wilson")),
        "image_to_text": float((words[similar.argmax(1)] == words).mean()),
        "text_to_image": float((words[similar.argmax(0)] == words).mean()),
        "n": len(right),
        "classes": len(names),
    } | {name: float(hits.mean()) for name, hits in groups.items()}


def create(config: Path) -> Any:
    """The model of a folder's open_clip_config.json, with fresh weights."""
    check("config", str(config), config.name == CONFIG, f"name a file {CONFIG}")
    with reading(config, "open_clip configuration", "begin with data/micro_clip's"), quiet():
        return open_clip.create_model(f"local-dir:{config.parent}", load_weights=False)


def save(model: nn.Module, config: Path, folder: Path) -> None:
    """Leaves a folder that open_clip loads as local-dir:FOLDER; weights in half precision."""
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    write_text(folder / CONFIG, config.read_text())
    with atomic(folder / "open_clip_model.safetensors") as temporary:
        safetensors.torch.save_file(halves, temporary)


def train_and_test(
    settings: Mapping, training: Training, folder: Path, device: torch.device
) -> tuple[dict[str, dict], dict]:
    """Draws, trains, saves to ``folder`` and evaluates: results by set of classes, and counts.

    settings: those of configs/train_micro_clip.yaml.
    """
    torch.manual_seed(int(key(Stream.WEIGHTS, training.seed)))
    path, held_out = shipped(settings["config"]), settings["held_out"]
    model = create(path)
    size, count = model.visual.preprocess_cfg["size"], settings["test_per_class"]
    check("held_out", held_out, isinstance(held_out, list), "give a list of classes; [] for none")
    check_number("views", settings["views"], 1)
    check_number("test_per_class", count, 1)
    every = read_names(settings["classes"])
    seen = [name for name in every if name not in held_out]
    kinds = {"seen classes": seen}
    if held_out:
        kinds |= {"held-out classes": held_out, "all classes": every}
    tests = {kind: Primitives("test", count, classes=names) for kind, names in kinds.items()}
    source = Primitives("train", settings["per_class"], classes=seen)
    taught = Views(source, settings["views"], size, workers=settings["workers"])
    tokenize = OpenClip(f"local-dir:{path.parent}").tokenize
    losses = train(model, tokenize, taught, training, device)
    save(model, path, folder)
    clip, results = OpenClip(f"local-dir:{folder}"), {}
    for kind, shapes in tests.items():
        results[kind] = evaluate(clip, Views(shapes, 1, size, seed=1), held_out)
    return results, counts(model, taught, losses)


def counts(model: nn.Module, taught: Views, losses: Sequence[float]) -> dict:
    """What a summary says of a training."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "shapes": len(taught),
        "pictures": len(taught) * taught.count,
        "losses": losses[::50],
    }
