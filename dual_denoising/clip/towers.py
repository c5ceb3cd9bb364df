"""Frozen CLIP through open_clip: both towers, and text features of any names, cached."""

import hashlib
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import open_clip
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms import Compose
from tqdm import tqdm

from dual_denoising.clip.features import Text, read_prompts
from dual_denoising.data import shipped
from dual_denoising.data.feature_file import FeatureFile
from dual_denoising.data.storage import atomic, fingerprint
from dual_denoising.errors import InputError, brief, check, check_choice, reading

log = logging.getLogger(__name__)

LOCAL = "local-dir:"  # open_clip's prefix of a folder with open_clip_config.json and the weights
FIX = (
    "name one of open_clip's; offline, give a local file of the weights (clip.weights=..., "
    "teacher.text.weights=..., with classify.py --weights), a folder (model=local-dir:...), or "
    "cached features"
)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OpenClip:
    """CLIP's image and text tower, frozen and in evaluation mode for good.

    model, pretrained: open_clip's names; or model='local-dir:FOLDER', which needs no pretrained and
    may be relative to the repository.
    weights: a local file of those weights; None downloads them. precision: fp32, or bf16 and fp16
    by autocast. Weights that were trained with QuickGELU get it whatever the model's name says:
    open_clip's tags know which, and an archive of OpenAI's own is recognised by its format.
    """

    def __init__(
        self,
        model: str = "ViT-B-32",
        pretrained: str | None = "openai",
        weights: str | None = None,
        device: str = "cpu",
        precision: str = "fp32",
    ):
        self.local = model.startswith(LOCAL)
        folder = shipped(model.removeprefix(LOCAL))
        self.model = f"{LOCAL}{folder}" if self.local else model
        with reading(folder, "CLIP of open_clip's", FIX):
            self.width = open_clip.get_model_config(self.model)["embed_dim"]
        good = weights is None or (Path(weights).is_file() and not self.local)
        fix = "give a file, and only of a model that open_clip knows by name"
        check("teacher weights", weights, good, fix)
        check_choice("precision", precision, PRECISIONS)
        self.pretrained = None if self.local else pretrained
        self.weights, self.device, self.precision = weights, torch.device(device), precision

    @cached_property
    def names(self) -> tuple[str, str]:
        """Model and weights in words: open_clip's names, or a folder's and a hash of its files."""
        if not self.local:
            return self.model, str(self.pretrained)
        folder = Path(self.model.removeprefix(LOCAL))
        kinds = (".json", ".safetensors", ".bin", ".pth", ".pt")
        files = sorted(p for p in folder.iterdir() if p.suffix in kinds)
        digests = "".join(fingerprint(file) for file in files)
        return folder.resolve().name, fingerprint(digests.encode())[:12]

    @cached_property
    def tower(self) -> Any:
        """The model of open_clip; raises InputError where its weights cannot be had."""
        archive = self.weights is not None and is_torchscript(self.weights)
        tag = {} if self.local else open_clip.get_pretrained_cfg(self.model, self.pretrained) or {}
        quick = archive or self.pretrained == "openai" or tag.get("quick_gelu", False)
        try:
            with quiet():
                tower = open_clip.create_model(
                    self.model,
                    pretrained=None if archive else self.weights or self.pretrained,
                    force_quick_gelu=quick,
                    force_preprocess_cfg=tag,
                    require_pretrained=not archive,
                )
                if archive:
                    own = open_clip.load_openai_model(self.weights, "fp32", "cpu")
                    tower.load_state_dict(own.state_dict())  # also refuses another architecture
        except Exception as error:  # the hub, the disk and torch each have their own
            place, why = self.weights or "/".join(self.names), brief(error).split(". ")[0]
            raise InputError(f"{place}: CLIP weights cannot be loaded ({why}); {FIX}") from error
        return tower.eval().requires_grad_(False).to(self.device)

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the loaded weights, from whatever file they came."""
        state = hashlib.sha256()
        for tensor in self.tower.state_dict().values():
            state.update(tensor.cpu().numpy().tobytes())
        return state.hexdigest()

    @property
    def image_size(self) -> int:
        """Pixels of a picture's side."""
        size = self.tower.visual.image_size
        return size[0] if isinstance(size, tuple) else size

    @cached_property
    def preprocess(self) -> Compose:
        """Picture (PIL) -> pixels (3, H, W), as the towers were trained."""
        config = open_clip.transform.PreprocessCfg(**self.tower.visual.preprocess_cfg)
        return open_clip.transform.image_transform_v2(config, is_train=False)

    @torch.inference_mode()
    def encode_images(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n e"]:
        """Features of preprocessed pictures, not normalised, float32 on the CPU."""
        with self._autocast():
            return self.tower.encode_image(pixels.to(self.device)).float().cpu()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        """Features of texts, not normalised, float32 on the CPU."""
        tokens = self.tokenize(list(texts)).to(self.device)
        with self._autocast():
            return self.tower.encode_text(tokens).float().cpu()

    @cached_property
    def tokenize(self):
        with quiet():
            return open_clip.get_tokenizer(self.model)

    def encode_names(self, names: Sequence[str], prompts: Sequence[str]) -> Float[Tensor, "c p e"]:
        """Features of every name under every prompt."""
        rows = [
            self.encode_texts([prompt.replace("{}", name) for prompt in prompts])
            for name in tqdm(names, "encoding class names", unit="name")
        ]
        return torch.stack(rows)

    def _autocast(self):
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences logging: open_clip and the Hub report every step and every retry of loading."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


class OpenClipText(Text):
    """CLIP's text tower. ``lookup`` encodes names under every prompt, once per content.

    model, pretrained, weights, device: as OpenClip's. prompts: recon60, ulip64, pointclip, name, or
    the path of a file with a prompt a line, ``{}`` for the name; or a list of them. cache: folder
    of feature files, named by a hash of all that decides their content; each can be read as a bank.
    """

    def __init__(
        self,
        model: str = "ViT-B-32",
        pretrained: str | None = "openai",
        weights: str | None = None,
        prompts: str | Sequence[str] = "recon60",
        cache: str = "~/.cache/dual_denoising/text",
        device: str = "cpu",
    ):
        self.clip = OpenClip(model, pretrained, weights, device)
        self.prompts = read_prompts(prompts) if isinstance(prompts, str) else list(prompts)
        self.cache = Path(cache).expanduser()
        self.teacher, self.width = "/".join(self.clip.names), self.clip.width

    @cached_property
    def weights(self) -> str:  # type: ignore[override]
        """SHA-256 of the weights that encoded the names of the last ``lookup``."""
        return self.clip.weights_hash

    def lookup(self, names: Sequence[str], underscores: bool = False) -> Float[Tensor, "c p e"]:
        spoken = [name if underscores else name.replace("_", " ") for name in names]
        weights = [Path(self.clip.weights)] if self.clip.weights else []
        mark = fingerprint(self.clip.names, self.prompts, spoken, *weights)[:24]
        path = self.cache / f"{mark}.h5"
        if path.exists():
            try:
                file = FeatureFile(str(path))
                self.weights = file.weights
                return file.take(spoken)
            except InputError as error:
                log.warning("%s; encoding anew", error)
        features = self.clip.encode_names(spoken, self.prompts)
        try:
            with atomic(path) as temporary, h5py.File(temporary, "w") as file:
                file["name"], file["feature"] = spoken, features.numpy()
                file.attrs["model"], file.attrs["pretrained"] = self.clip.names
                file.attrs["prompts"], file.attrs["weights"] = self.prompts, self.weights
        except InputError as error:
            log.warning("%s: features not cached", error)
        return features


def is_torchscript(path: str | Path) -> bool:
    """Whether a file of weights is a TorchScript archive, which only OpenAI's own CLIPs are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any("/code/" in name for name in file.namelist())
