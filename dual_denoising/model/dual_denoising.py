"""Dual Denoising: PointDAE and the feature denoiser as one model (Fig. 4)."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from dual_denoising import keyed_random as noise
from dual_denoising.errors import InputError
from dual_denoising.model import losses
from dual_denoising.model.feature_denoiser import FeatureDenoiser
from dual_denoising.model.numpy_io import Array, check_batch, on_arrays
from dual_denoising.model.point_dae import PointDAE
from dual_denoising.model.tokens import Tokens, center_indices, group
from dual_denoising.ops import knn_gather, knn_indices

CLOUDS_AT_ONCE = {False: 32, True: 512}  # noised clouds in one batch: CPU (cache), GPU (memory)


class DualDenoising(nn.Module, PyTorchModelHubMixin):
    """Point clouds -> CLIP's image and text features, learned by denoising twice.

    Every argument is plain data and is saved in ``config.json``. The defaults are the paper's.

    width, heads, encoder_depth, decoder_depth: D, attention heads, L, decoder blocks.
    num_groups, group_size: G tokens of K points. token_widths, token_norm: the mini-PointNet's.
    feature_types: names of the F teacher features, of 'image' and 'text'. feature_width: E.
    noise_scale, noise_steps, timestep_merge: s, T, Δ of Sections 3.1 and 3.3.
    mask_ratio: share of tokens hidden from the encoder and rebuilt instead of all (ablation).
    learned_tokens: parameters in place of the Gaussian tokens (ablation).
    feature_noise_std: how strongly ε₂ enters. stop_gradient: detach between the branches in
    training. target_scale: 'raw', or 'standardised' teacher features (undone in ``encode``).
    feature_weight: α of Eq. 3.
    """

    logit_scale = 100.0  # of the cosine to class weights, CLIP's own limit

    def __init__(
        self,
        width: int = 384,
        heads: int = 6,
        encoder_depth: int = 12,
        decoder_depth: int = 4,
        num_groups: int = 64,
        group_size: int = 32,
        token_widths: Sequence[int] = (128, 256, 512),
        token_norm: str = "batch",
        drop_path: float = 0.1,
        feature_types: Sequence[str] = ("image", "text"),
        feature_width: int = 512,
        noise_scale: float = 0.08,
        noise_steps: int = 1000,
        timestep_merge: int = 100,
        mask_ratio: float = 0.0,
        learned_tokens: bool = False,
        feature_noise_std: float = 0.02,
        stop_gradient: bool = True,
        target_scale: str = "raw",
        feature_weight: float = 1.0,
    ):
        super().__init__()
        if target_scale not in ("raw", "standardised"):
            raise InputError(f"target_scale is {target_scale!r}: choose 'raw' or 'standardised'")
        if width % heads:
            raise InputError(
                f"width is {width}, heads is {heads}: width must be a multiple of heads"
            )
        if len(token_widths) != 3:
            raise InputError(f"token_widths is {list(token_widths)}: give three widths")
        if not feature_types:
            raise InputError("feature_types is empty: give [text], [image] or [image, text]")
        if timestep_merge < 1:
            raise InputError(f"timestep_merge is {timestep_merge}: it must be at least 1")
        if not 0 <= mask_ratio < 1:
            raise InputError(f"mask_ratio is {mask_ratio}: choose a share from 0 to below 1")
        self.feature_types, self.feature_width = tuple(feature_types), feature_width
        self.num_groups, self.group_size = num_groups, group_size
        self.noise_scale, self.noise_steps = noise_scale, noise_steps
        self.timestep_merge, self.mask_ratio = timestep_merge, mask_ratio
        self.stop_gradient, self.target_scale = stop_gradient, target_scale
        self.feature_weight = feature_weight
        self.point_dae = PointDAE(
            width, heads, encoder_depth, decoder_depth, group_size, tuple(token_widths),
            token_norm, drop_path,
        )  # fmt: skip
        self.feature_denoiser = FeatureDenoiser(
            width, heads, encoder_depth, len(self.feature_types), feature_width,
            feature_noise_std, learned_tokens,
        )  # fmt: skip
        shape = (len(self.feature_types), feature_width)
        self.register_buffer("target_mean", torch.zeros(shape))
        self.register_buffer("target_std", torch.ones(shape))

    @torch.no_grad()
    def fit_targets(self, mean: Float[Tensor, "f e"], std: Float[Tensor, "f e"]) -> None:
        """Prepares for teacher features of this mean and standard deviation, before training.

        mean, std: (F, E). 'standardised' stores both. 'raw' starts the heads' biases at the mean,
        which for CLIP is larger than the spread between classes: they need not travel there first.
        """
        if self.target_scale == "standardised":
            self.target_mean.copy_(mean)
            self.target_std.copy_(std.clamp(min=1e-3 * std.max().item() + 1e-12))
        else:
            for head, bias in zip(self.feature_denoiser.heads, mean, strict=True):
                head.bias.copy_(bias)

    def forward(
        self,
        clouds: Float[Tensor, "b n 3"],
        targets: Float[Tensor, "b f e"],
        keys: Int[Tensor, " b"],
    ) -> dict[str, Tensor]:
        """Training losses of Eq. 3; all noise is a function of ``keys``, one per cloud.

        clouds: (B, N, 3) in the unit sphere, targets: (B, F, E) -> 'loss' and its parts, scalars.
        """
        timestep = noise.timesteps(noise.key(keys, noise.TIMESTEP), self.noise_steps)  # (B,)
        sigma = noise.noise_scale(timestep, self.noise_scale, self.noise_steps)  # (B,)
        noisy, clean = self.noisy_and_clean_tokens(clouds, sigma, keys)
        layers = self.encode_points(noisy, timestep)
        loss_point = self.loss_point(layers[-1], noisy, clean, timestep, sigma)
        loss_feature = self.loss_feature(layers, targets, keys)
        loss = loss_point + self.feature_weight * loss_feature
        return {"loss": loss, "loss_point": loss_point, "loss_feature": loss_feature}

    def noisy_and_clean_tokens(
        self, clouds: Tensor, sigma: Tensor, keys: Tensor
    ) -> tuple[Tokens, Tokens]:
        """Tokens of the noised and of the clean cloud around the same clean farthest points."""
        indices = center_indices(clouds, self.num_groups)
        if self.mask_ratio:  # the first tokens are the visible ones, so their order is drawn
            order = noise.uniform(noise.key(keys, noise.MASK), self.num_groups).argsort(1)
            indices = indices.gather(1, order)
        noisy = self.noised(clouds, sigma, keys)
        return group(noisy, indices, self.group_size), group(clouds, indices, self.group_size)

    def noised(self, clouds: Tensor, sigma: Tensor, keys: Tensor) -> Tensor:
        """Clouds (B, N, 3) with noise of strength sigma (B,), a function of keys (B,)."""
        epsilon = noise.gaussian(noise.key(keys, noise.POINTS), *clouds.shape[1:])
        return noise.corrupt(clouds, sigma, epsilon.to(clouds.dtype))

    def encode_points(self, noisy: Tokens, timestep: Tensor) -> list[Tensor]:
        """Features (B, V, D) of every encoder layer, V = G without masking."""
        visible = self.num_visible if self.training else self.num_groups
        noisy = Tokens(noisy.centers[:, :visible], noisy.points[:, :visible])
        return self.point_dae.encode(noisy, self.merged(timestep))

    def loss_point(
        self, latent: Tensor, noisy: Tokens, clean: Tokens, timestep: Tensor, sigma: Tensor
    ) -> Tensor:
        """λ_t·L_p^t, mean over clouds; of the hidden tokens alone where some are hidden."""
        rebuilt = self.point_dae.decode(latent, noisy.centers, self.merged(timestep))
        first = latent.shape[1] if latent.shape[1] < self.num_groups else 0
        loss = losses.point_loss(rebuilt[:, first:].float(), clean.points[:, first:])
        return (losses.point_weight(sigma) * loss).mean()

    def loss_feature(self, layers: list[Tensor], targets: Tensor, keys: Tensor) -> Tensor:
        """L_f; the stop-gradient of Fig. 4 lives here, so inference never meets it."""
        if self.stop_gradient:
            layers = [layer.detach() for layer in layers]
        features = self.denoise_features(layers, keys[:, None])[:, 0]  # (B, F, E)
        return losses.feature_loss(features, (targets - self.target_mean) / self.target_std)

    def denoise_features(self, layers: list[Tensor], keys: Tensor) -> Tensor:
        """Layers (B, G, D) and keys (B, S) -> predictions (B, S, F, E) in the heads' own scale."""
        shape = (len(self.feature_types), self.feature_width)
        epsilon = noise.gaussian(noise.key(keys, noise.FEATURES), *shape)
        return self.feature_denoiser(epsilon.to(layers[0].dtype), layers)

    def merged(self, timestep: Tensor) -> Tensor:
        """t' = ⌊t/Δ⌋, all the network hears of the timestep (Section 3.3)."""
        return timestep // self.timestep_merge

    @property
    def blocks(self) -> list[nn.Module]:
        """All transformer blocks, which hold nearly all parameters: what is sharded one by one."""
        return [*self.point_dae.encoder, *self.point_dae.decoder, *self.feature_denoiser.blocks]

    @property
    def num_visible(self) -> int:
        return self.num_groups - int(self.mask_ratio * self.num_groups)

    def encode(
        self,
        clouds: Float[Array, "b n 3"],
        num_noise: int = 8,
        timestep: int = 500,
        seed: int = 0,
        indices: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b f e"]:
        """Teacher features, averaged over S noise paths (Eq. 4), raw: not normalised.

        clouds: (B, N, 3) in the unit sphere, y-up, indices: (B,) of the clouds in their data set,
        0..B−1 if None -> (B, F, E). Noise is keyed by (seed, index, path), so that no batch size
        changes a prediction. Gradients reach the clouds. NumPy in gives NumPy out.
        """
        if isinstance(clouds, np.ndarray):
            like = self.target_mean
            return on_arrays(self.encode, like, clouds, num_noise, timestep, seed, indices=indices)
        check_batch(clouds)
        return self.encode_paths(clouds, num_noise, timestep, seed, indices).mean(1)

    def encode_paths(
        self,
        clouds: Float[Tensor, "b n 3"],
        num_noise: int,
        timestep: int,
        seed: int = 0,
        indices: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b s f e"]:
        """The S paths of ``encode`` before their mean: (B, S, F, E), teacher's scale."""
        if num_noise < 1:
            raise InputError(f"num_noise is {num_noise}: choose at least 1 noise path")
        if indices is None:
            indices = torch.arange(len(clouds), device=clouds.device)
        keys = noise.path_keys(seed, indices, num_noise)
        return self.encode_keys(clouds, keys, timestep)

    def grouping(self, clouds: Float[Tensor, "b n 3"], neighbours: bool = False) -> list[Tensor]:
        """Indices that ``encode_keys`` then need not search: of the centres, of their tokens."""
        centers = center_indices(clouds, self.num_groups)
        if not neighbours:
            return [centers]
        points = knn_gather(clouds, centers[:, None])[:, 0]
        return [centers, knn_indices(points, clouds, self.group_size)]

    def encode_keys(
        self,
        clouds: Float[Tensor, "b n 3"],
        keys: Int[Tensor, "b p"],
        timestep: int,
        centers: Int[Tensor, "b g"] | None = None,
        neighbours: Int[Tensor, "b g k"] | None = None,
    ) -> Float[Tensor, "b p f e"]:
        """Features of one noise path per key (B, P), of any seeds: (B, P, F, E), teacher's scale.

        Where σ_t = 0 the encoder runs once for all paths; elsewhere they are batches of B·P.
        centers, neighbours: (B, G), (B, G, K) indices of the tokens' points, None to search them.
        """
        if not 0 <= timestep < self.noise_steps:
            raise InputError(f"timestep is {timestep}: choose one from 0 to {self.noise_steps - 1}")
        centers = center_indices(clouds, self.num_groups) if centers is None else centers
        steps = torch.full((len(clouds),), timestep, device=clouds.device)
        if timestep == 0 or self.noise_scale == 0:
            layers = self.encode_points(group(clouds, centers, self.group_size, neighbours), steps)
            features = self.denoise_features(layers, keys)  # (B, P, F, E)
        else:
            paths = max(1, CLOUDS_AT_ONCE[clouds.is_cuda] // len(clouds))
            parts = keys.split(paths, dim=1)
            features = torch.cat(
                [self._noised_paths(clouds, p, steps, centers, neighbours) for p in parts], 1
            )
        return features * self.target_std + self.target_mean

    def _noised_paths(self, clouds, keys, steps, centers, neighbours) -> Tensor:
        """Paths of ``keys`` (B, P) as one batch of B·P: (B, P, F, E), the heads' own scale."""
        repeat = [t.repeat_interleave(keys.shape[1], 0) for t in (clouds, steps, centers)]
        clouds, steps, centers = repeat  # (B·P, ...)
        sigma = noise.noise_scale(steps, self.noise_scale, self.noise_steps)
        if neighbours is not None:
            neighbours = neighbours.repeat_interleave(keys.shape[1], 0)
        noisy = self.noised(clouds, sigma, keys.flatten())
        layers = self.encode_points(group(noisy, centers, self.group_size, neighbours), steps)
        features = self.denoise_features(layers, keys.reshape(-1, 1))  # (B·P, 1, F, E)
        return features.view(*keys.shape, *features.shape[2:])

    @torch.no_grad()
    def rebuild(
        self, clouds: Float[Tensor, "b n 3"], timestep: int, seed: int = 0
    ) -> tuple[Float[Tensor, "b n 3"], Float[Tensor, "b m 3"]]:
        """The noised cloud and what the decoder makes of it: (B, N, 3), (B, G·K, 3).

        Rebuilt tokens are set down at their clean centres, since they are learned relative to them.
        """
        training = self.training
        self.eval()
        steps = torch.full((len(clouds),), timestep, device=clouds.device)
        keys = noise.key(seed, torch.arange(len(clouds), device=clouds.device))
        sigma = noise.noise_scale(steps, self.noise_scale, self.noise_steps)
        noisy, clean = self.noisy_and_clean_tokens(clouds, sigma, keys)
        latent = self.encode_points(noisy, steps)[-1]
        rebuilt = self.point_dae.decode(latent, noisy.centers, self.merged(steps))
        self.train(training)
        rebuilt = (rebuilt + clean.centers[:, :, None]).flatten(1, 2)
        return self.noised(clouds, sigma, keys), rebuilt

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> DualDenoising:
        """A model in evaluation mode from ``config.json``, ``model.safetensors``, or the hub.

        Raises InputError where a local folder is incomplete, damaged or of another architecture.
        """
        folder = Path(folder)
        if folder.is_dir():
            _check_config(folder / "config.json", cls)
        try:
            return super().from_pretrained(str(folder), strict=True, **kwargs)
        except (SafetensorError, RuntimeError, OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:600]
            raise InputError(
                f"{folder}: not a {cls.__name__} checkpoint that can be loaded ({reason}); give "
                "the folder 'model' of a pre-training run"
            ) from error


def _check_config(path: Path, cls: type) -> None:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: missing; give the folder 'model' of a pre-training run, which holds "
            "config.json and model.safetensors"
        ) from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    known = inspect.signature(cls.__init__).parameters
    unknown = sorted(set(config) - set(known)) if isinstance(config, dict) else ["(not an object)"]
    if unknown:
        raise InputError(f"{path}: '{unknown[0]}' is no field of {cls.__name__}; another model's?")
