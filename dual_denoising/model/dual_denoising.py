"""Dual Denoising: PointDAE and the feature denoiser as one model (Fig. 4).

Read top-down: ``forward`` is training (Eq. 2 and 3), ``encode`` is parallel noise inference
(Eq. 4). Eq. 1, the comparison with text features, is evaluation/classifier.py.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize, smooth_l1_loss

from dual_denoising import keyed_random
from dual_denoising.errors import check, check_choice, check_number
from dual_denoising.keyed_random import FEATURE_NOISE, MASK
from dual_denoising.model.feature_denoiser import FeatureDenoiser
from dual_denoising.model.interface import Array, Pretrained, numpy_in_numpy_out
from dual_denoising.model.noising import Noising
from dual_denoising.model.point_dae import PointDAE
from dual_denoising.model.tokens import Grouping, Tokens, choose_centers, gather, group
from dual_denoising.ops import chamfer_distance, knn_indices

CPU_BATCH, GPU_BATCH = 32, 512  # noisy clouds encoded at once: they fit into cache, into memory


class DualDenoising(nn.Module, Pretrained):
    """Point clouds -> CLIP's image and text features, learned by denoising twice.

    Every argument is plain data and is saved in ``config.json``. The defaults are the paper's where
    it gives a value; README.md says why the others were chosen. Raises InputError for values that
    fit no model.
    """

    logit_scale = 100.0  # e^τ of Eq. 1: CLIP clips its own there
    keeps_tokens = True  # under attack: ``grouping(neighbours=True)``

    def __init__(
        self,
        width: int = 384,  # D
        heads: int = 6,
        encoder_depth: int = 12,  # L
        decoder_depth: int = 4,
        num_groups: int = 64,  # G tokens of K points; ReCon's, the paper's Fig. 3 has 128 of 16
        group_size: int = 32,
        token_widths: Sequence[int] = (128, 256, 512),  # the mini-PointNet's
        token_norm: str = "batch",  # or 'layer', for small batches and CPU ranks
        drop_path: float = 0.1,
        feature_types: Sequence[str] = ("image", "text"),  # F teacher features, or one of them
        feature_width: int = 512,  # E, of CLIP ViT-B/32
        noise_scale: float = 0.08,  # s
        noise_steps: int = 1000,  # T
        timestep_merge: int = 100,  # Δ; 1: no merging, 1000: no timestep
        mask_ratio: float = 0.0,  # share of tokens hidden in training; not the paper's
        learned_tokens: bool = False,  # in place of the Gaussian tokens ε₂ (ablation)
        feature_noise_std: float | None = None,  # of ε₂'s trained projection; None: fixed
        feature_read_gain: float = 1.0,  # factor on the cross-attention's first output weights
        stop_gradient: bool = True,  # the encoder learns from the point loss alone
        target_scale: str = "raw",  # or 'standardised', which ``encode`` turns back
        feature_weight: float = 1.0,  # α of Eq. 3
        similarity_weight: float = 0.0,  # of a term that is not the paper's, see ``feature_loss``
    ):
        super().__init__()
        types = tuple(feature_types)
        known = types and set(types) <= {"image", "text"}
        sizes = {"width": width, "heads": heads, "encoder_depth": encoder_depth}
        sizes |= {"decoder_depth": decoder_depth, "num_groups": num_groups}
        sizes |= {"group_size": group_size, "timestep_merge": timestep_merge}
        for name, size in sizes.items():
            check_number(f"model.{name}", size, 1)
        check_number("model.noise_steps", noise_steps, 2)
        factors = {"noise_scale": noise_scale, "feature_read_gain": feature_read_gain}
        factors |= {"feature_weight": feature_weight, "similarity_weight": similarity_weight}
        for name, factor in factors.items():
            check_number(f"model.{name}", factor, whole=False)
        check("model.width", width, width % heads == 0, f"it must be a multiple of heads ({heads})")
        whole = len(token_widths) == 3 and min(token_widths) > 0
        check("model.token_widths", token_widths, whole, "give three widths, each from 1")
        check_choice("model.token_norm", token_norm, ("batch", "layer"))
        check("model.feature_types", list(types), known, "give [text], [image] or [image, text]")
        for name, share in (("drop_path", drop_path), ("mask_ratio", mask_ratio)):
            check_number(f"model.{name}", share, whole=False)
            check(f"model.{name}", share, share < 1, "choose one below 1")
        hides = not mask_ratio or int(mask_ratio * num_groups) > 0
        check("model.mask_ratio", mask_ratio, hides, f"of {num_groups} tokens it hides none")
        check_number("model.feature_noise_std", feature_noise_std or 0, whole=False)
        check_choice("model.target_scale", target_scale, ("raw", "standardised"))
        self.feature_types, self.feature_width = types, feature_width
        self.num_groups, self.group_size = num_groups, group_size
        self.noising = Noising(noise_scale, noise_steps, timestep_merge)
        self.mask_ratio, self.stop_gradient = mask_ratio, stop_gradient
        self.target_scale, self.feature_weight = target_scale, feature_weight
        self.similarity_weight = similarity_weight
        trunk = width, heads, encoder_depth
        self.point_dae = PointDAE(
            *trunk, decoder_depth, group_size, token_widths, token_norm, drop_path
        )
        start = feature_noise_std, feature_read_gain, learned_tokens
        self.feature_denoiser = FeatureDenoiser(*trunk, len(types), feature_width, *start)
        self.target_mean = nn.Buffer(torch.zeros(len(types), feature_width))
        self.target_std = nn.Buffer(torch.ones(len(types), feature_width))

    def forward(
        self,
        clouds: Float[Tensor, "b n 3"],
        targets: Float[Tensor, "b f e"],
        keys: Int[Tensor, " b"],
    ) -> dict[str, Tensor]:
        """The training loss of a batch, Eq. 3, and its two parts.

        Returns scalars: ``loss``; ``loss_point``, λ_t·ℒ_p^t; ``loss_feature``, ℒ_f before α.

        clouds: in the unit sphere. targets: the teacher's features, F in the order of
        ``feature_types``. keys: one per cloud, an integer from which keyed_random derives every
        draw for it.
        """
        t = self.noising.draw_timesteps(keys)  # (B,)
        noisy, clean = self.noisy_and_clean_tokens(clouds, t, keys)  # noised by Eq. 2
        layers = self.encode_points(noisy, t)  # L × (B, V, D)
        rebuilt = self.decode_points(layers[-1], noisy, t)  # (B, G, K, 3)
        loss_point = self.point_loss(rebuilt, clean, t)  # λ_t·ℒ_p^t
        if self.stop_gradient:  # Fig. 4; not in ``encode``, whose gradients attacks need
            layers = [layer.detach() for layer in layers]
        predicted = self.denoise_features(layers, keys[:, None])[:, 0]  # S = 1: (B, F, E)
        loss_feature = self.feature_loss(predicted, targets)  # ℒ_f
        loss = loss_point + self.feature_weight * loss_feature  # Eq. 3
        return {"loss": loss, "loss_point": loss_point, "loss_feature": loss_feature}

    def noisy_and_clean_tokens(
        self, clouds: Tensor, t: Tensor, keys: Tensor
    ) -> tuple[Tokens, Tokens]:
        """Tokens around the same centre indices in the noisy and in the clean cloud.

        So the clean token g is the target of the noisy token g.
        """
        indices = choose_centers(clouds, self.num_groups)  # (B, G)
        if self.mask_ratio:  # the first tokens are the visible ones, so their order is drawn
            drawn = keyed_random.uniform(keyed_random.key(keys, MASK), self.num_groups)
            indices = indices.gather(1, drawn.argsort(1))
        noisy, kept = self.noising.add_noise(clouds, t, keys), (Grouping(indices), self.group_size)
        return group(noisy, *kept), group(clouds, *kept)

    @property
    def num_hidden(self) -> int:
        """How many of the G tokens the encoder is not shown: the last ones, in masked training."""
        return int(self.mask_ratio * self.num_groups) if self.training else 0

    def encode_points(self, tokens: Tokens, t: Tensor) -> list[Tensor]:
        """Features (B, V, D) of every encoder layer; V = G except in masked training."""
        visible = self.num_groups - self.num_hidden
        shown = Tokens(tokens.centers[:, :visible], tokens.points[:, :visible])
        return self.point_dae.encode(shown, self.noising.merged(t))

    def decode_points(self, latent: Tensor, tokens: Tokens, t: Tensor) -> Tensor:
        """The last layer's features (B, V, D) -> rebuilt points (B, G, K, 3) of all tokens."""
        return self.point_dae.decode(latent, tokens.centers, self.noising.merged(t))

    def point_loss(self, rebuilt: Tensor, clean: Tokens, t: Tensor) -> Tensor:
        """λ_t·ℒ_p^t: the weighted Chamfer distance of rebuilt and clean tokens, mean over clouds.

        With masking, only the hidden tokens count.
        """
        counted = slice(-self.num_hidden, None)  # the hidden ones; of none, slice(-0, None) is all
        rebuilt, original = rebuilt[:, counted].float(), clean.points[:, counted]
        distance, _ = chamfer_distance(
            rebuilt.flatten(0, 1), original.flatten(0, 1), batch_reduction=None
        )
        per_cloud = distance.view(rebuilt.shape[:2]).mean(1)  # (B,)
        return (self.noising.weight(t) * per_cloud).mean()

    def feature_loss(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """ℒ_f: Smooth-L1 (β = 1) between each prediction and its own cloud's teacher features.

        No negatives. ``similarity_weight`` adds a term that is not the paper's.
        """
        scaled = (targets - self.target_mean) / self.target_std
        loss = smooth_l1_loss(predicted.float(), scaled.float())
        if self.similarity_weight:
            predicted = predicted * self.target_std + self.target_mean
            gap = similarities(predicted.float()) - similarities(targets.float())
            loss = loss + self.similarity_weight * gap.square().mean()
        return loss

    def denoise_features(self, layers: list[Tensor], keys: Tensor) -> Tensor:
        """Encoder layers (B, V, D), keys (B, S) -> features (B, S, F, E), in training's scale."""
        shape = (len(self.feature_types), self.feature_width)
        epsilon = keyed_random.gaussian(keyed_random.key(keys, FEATURE_NOISE), *shape)  # ε₂
        return self.feature_denoiser(epsilon.to(layers[0].dtype), layers)

    @numpy_in_numpy_out
    def encode(
        self,
        clouds: Float[Tensor, "b n 3"],
        num_noise: int = 8,
        timestep: int = 500,
        seed: int = 0,
        indices: Int[Array, " b"] | None = None,
    ) -> Float[Tensor, "b f e"]:
        """Eq. 4: predicted teacher features, the mean over S noise paths; not of unit length.

        clouds: in the unit sphere, y-up. indices: of the clouds in their dataset, 0..B−1 if None.
        Noise is a function of (seed, index, path), so that a feature does not depend on the batch.
        Gradients reach the clouds. NumPy in gives NumPy out.
        """
        check_number("num_noise", num_noise, 1)
        if indices is None:
            indices = torch.arange(len(clouds), device=clouds.device)
        indices = torch.as_tensor(indices, device=clouds.device)
        keys = keyed_random.path_keys(seed, indices, num_noise)  # (B, S)
        return self.encode_paths(clouds, keys, timestep).mean(1)

    def encode_paths(
        self,
        clouds: Float[Tensor, "b n 3"],
        keys: Int[Tensor, "b s"],
        timestep: int,
        grouping: Grouping | None = None,
    ) -> Float[Tensor, "b s f e"]:
        """Features of one noise path per key, in the teacher's scale.

        Where σ_t is 0 the encoder runs once for all paths. grouping: indices of the tokens' centres
        and, maybe, of their neighbours. If None, centres are the farthest points of ``clouds``.
        Neighbours that are not given are searched in every noisy cloud.
        """
        last = self.noising.steps - 1
        check("timestep", timestep, 0 <= timestep <= last, f"choose one from 0 to {last}")
        grouping = grouping or self.grouping(clouds)
        if self.noising.is_clean(timestep):
            return self.encode_noisy(clouds, keys, timestep, grouping)
        at_once = max(1, (GPU_BATCH if clouds.is_cuda else CPU_BATCH) // len(clouds))
        features = []
        for some in keys.split(at_once, dim=1):  # P of the S paths of every cloud as one batch
            path_keys, paths = some.flatten(), some.shape[1]
            repeated = clouds.repeat_interleave(paths, 0)  # (B·P, N, 3)
            t = torch.full_like(path_keys, timestep)
            noisy = self.noising.add_noise(repeated, t, path_keys)
            kept = Grouping(*(x.repeat_interleave(paths, 0) for x in grouping if x is not None))
            encoded = self.encode_noisy(noisy, path_keys[:, None], timestep, kept)
            features.append(encoded[:, 0].unflatten(0, some.shape))  # (B, P, F, E)
        return torch.cat(features, 1)

    def encode_noisy(
        self,
        noisy: Float[Tensor, "b n 3"],
        keys: Int[Tensor, "b s"],
        timestep: int,
        grouping: Grouping | None = None,
    ) -> Float[Tensor, "b s f e"]:
        """Features of clouds to which the noise was added already; each key gives its own ε₂.

        grouping: token indices found on the clean clouds. None finds them on the noisy clouds, so
        that nothing of the clean ones is used.
        """
        tokens = group(noisy, grouping or self.grouping(noisy), self.group_size)
        layers = self.encode_points(tokens, torch.full_like(keys[:, 0], timestep))
        return self.denoise_features(layers, keys) * self.target_std + self.target_mean

    def grouping(self, clouds: Float[Tensor, "b n 3"], neighbours: bool = False) -> Grouping:
        """Indices of centres (and neighbours) in these clouds, for noisy or attacked copies."""
        indices = choose_centers(clouds, self.num_groups)
        if not neighbours:
            return Grouping(indices)
        return Grouping(indices, knn_indices(gather(clouds, indices), clouds, self.group_size))

    @torch.no_grad()
    def fit_targets(self, mean: Float[Tensor, "f e"], std: Float[Tensor, "f e"]) -> None:
        """Call once before training, with mean and standard deviation of the teacher's features.

        'standardised' stores both. 'raw' starts the heads' biases at the mean: CLIP's is
        larger than the spread between its classes, and training need not learn it first.
        """
        if self.target_scale == "standardised":
            self.target_mean.copy_(mean)
            self.target_std.copy_(std.clamp(min=1e-3 * std.max().item() + 1e-12))
        else:
            for head, bias in zip(self.feature_denoiser.heads, mean, strict=True):
                head.get_parameter("bias").copy_(bias)

    @torch.no_grad()
    def rebuild(
        self, clouds: Float[Tensor, "b n 3"], timestep: int, seed: int = 0
    ) -> tuple[Float[Tensor, "b n 3"], Float[Tensor, "b gk 3"]]:
        """The noisy cloud, and the G·K points that the decoder makes of it, for pictures.

        Rebuilt tokens are placed at their clean centres, relative to which they are learned.
        """
        training = self.training
        self.eval()
        indices = torch.arange(len(clouds), device=clouds.device)
        keys = keyed_random.path_keys(seed, indices, 1)[:, 0]
        t = torch.full_like(keys, timestep)
        noisy, clean = self.noisy_and_clean_tokens(clouds, t, keys)
        rebuilt = self.decode_points(self.encode_points(noisy, t)[-1], noisy, t)
        self.train(training)
        rebuilt = (rebuilt + clean.centers[:, :, None]).flatten(1, 2)
        return self.noising.add_noise(clouds, t, keys), rebuilt

    @property
    def blocks(self) -> list[nn.Module]:
        """All transformer blocks, which hold nearly all parameters."""
        return [*self.point_dae.encoder, *self.point_dae.decoder, *self.feature_denoiser.blocks]


def similarities(features: Float[Tensor, "b f e"]) -> Float[Tensor, "f b b"]:
    """Cosines of every two clouds, of each feature type."""
    units = normalize(features, dim=-1).transpose(0, 1)
    return units @ units.mT
