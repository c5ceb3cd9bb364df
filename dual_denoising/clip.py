"""Frozen CLIP through open_clip: text features of any names under any prompts, cached."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import open_clip
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from dual_denoising.data.sources import digest
from dual_denoising.errors import InputError
from dual_denoising.teacher import FeatureFile, read_prompts

log = logging.getLogger(__name__)


class OpenClipText:
    """CLIP's text tower. ``lookup`` encodes names under every prompt, once per content.

    model, pretrained: open_clip's names. weights: a local file of those weights; None downloads
    them. prompts: recon60, ulip64, pointclip, name, or the path of a file with a prompt a line,
    ``{}`` for the name. cache: folder of feature files, named by a hash of all that decides their
    content; each can be read as a bank.
    """

    def __init__(
        self,
        model: str = "ViT-B-32",
        pretrained: str = "openai",
        weights: str | None = None,
        prompts: str = "recon60",
        cache: str = "~/.cache/dual_denoising/text",
        device: str = "cpu",
    ):
        config = open_clip.get_model_config(model)
        if config is None:
            raise InputError(f"teacher.text.model is '{model}': open_clip knows no such model")
        if weights is not None and not Path(weights).is_file():
            raise InputError(f"teacher.text.weights is {weights}: no such file")
        self.model, self.pretrained, self.weights, self.device = model, pretrained, weights, device
        self.prompts, self.cache = read_prompts(prompts), Path(cache).expanduser()
        self.teacher, self.width = f"{model}/{pretrained}", config["embed_dim"]

    def lookup(
        self, names: Sequence[str], keep_underscores: bool = False
    ) -> Float[Tensor, "c p e"]:
        """Features of class names, one variant per prompt, not normalised: (C, P, E)."""
        spoken = [name if keep_underscores else name.replace("_", " ") for name in names]
        weights = digest(self.weights) if self.weights else ""
        content = [self.model, self.pretrained, weights, self.prompts, spoken]
        path = self.cache / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]}.h5"
        if path.exists():
            try:
                return FeatureFile(str(path)).take(spoken)
            except InputError as error:
                log.warning("%s; encoding anew", error)
        features = self._encode(spoken)
        self._store(path, spoken, features)
        return features

    @torch.inference_mode()
    def _encode(self, names: Sequence[str]) -> Tensor:
        tower = self._load().eval().to(self.device)
        tokenize = open_clip.get_tokenizer(self.model)
        rows = []
        for name in tqdm(names, "encoding class names", unit="name", disable=None):
            tokens = tokenize([prompt.replace("{}", name) for prompt in self.prompts])
            rows.append(tower.encode_text(tokens.to(self.device)).float().cpu())
        return torch.stack(rows).clone()

    def _load(self) -> torch.nn.Module:
        try:
            return open_clip.create_model(
                self.model,
                pretrained=self.weights or self.pretrained,
                force_quick_gelu=self.pretrained == "openai",
                require_pretrained=True,
            )
        except Exception as error:  # the hub, the disk and torch each have their own
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise InputError(
                f"{self.weights or self.teacher}: CLIP weights cannot be loaded ({reason}); give a "
                "local file with teacher.text.weights=..., or use cached features (a bank)"
            ) from error

    def _store(self, path: Path, names: Sequence[str], features: Tensor) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(partial, "w") as file:
                file["name"], file["feature"] = list(names), features.numpy()
                file.attrs["model"], file.attrs["pretrained"] = self.model, self.pretrained
                file.attrs["prompts"] = self.prompts
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            log.warning("%s: features not cached (%s)", path, error)
