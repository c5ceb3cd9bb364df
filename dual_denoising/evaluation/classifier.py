"""Zero-shot classification (Eq. 1): clouds -> logits, all that metrics and attacks see."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from dual_denoising import keyed_random
from dual_denoising.baselines.base import Baseline
from dual_denoising.errors import check
from dual_denoising.model.dual_denoising import DualDenoising
from dual_denoising.model.interface import Array, numpy_in_numpy_out
from dual_denoising.model.tokens import Grouping


class ZeroShotClassifier(nn.Module):
    """Eq. 1: the cosine of averaged features and class weights, times the model's scale.

    class_weights: (C, E) unit vectors, the same for every feature type, or (F, C, E). Feature types
    are normalised one by one and added with ``type_weights``, 1:1 if None. center (E,): subtracted
    from all unit vectors before their cosine, so that what all names share does not count. The
    attribute ``penalty`` (C,), None at first, is subtracted from the cosine of each class. Raises
    InputError for settings that the model cannot do.
    """

    center: Tensor | None
    penalty: Tensor | None

    def __init__(
        self,
        model: DualDenoising | Baseline,
        class_weights: Float[Array, "*f c e"],
        num_noise: int = 8,
        timestep: int = 500,
        seed: int = 0,
        type_weights: Sequence[float] | None = None,
        center: Tensor | None = None,
    ):
        super().__init__()
        self.model, self.num_noise, self.timestep, self.seed = model, num_noise, timestep, seed
        self.grouping: Grouping | None = None  # tokens of fixed clouds; None: searched anew
        types = len(model.feature_types)
        shares = [1.0] * types if type_weights is None else list(type_weights)
        last = model.noising.steps - 1 if model.noising else 0
        class_weights = torch.as_tensor(class_weights, dtype=torch.float32)
        names, width = ", ".join(model.feature_types), class_weights.shape[-1]
        own = f"the model's features have {model.feature_width}; take its own teacher's"
        check("type_weights", shares, len(shares) == types, f"give one for each of {names}")
        check("type_weights", shares, min(shares) >= 0 and sum(shares) > 0, "give weights from 0")
        check("timestep", timestep, 0 <= timestep <= last, f"choose one from 0 to {last}")
        check("num_noise", num_noise, num_noise >= 1, "choose at least 1 noise path")
        check("width of class_weights", width, width == model.feature_width, own)
        self.register_buffer("center", center)
        self.register_buffer("penalty", None)
        self.class_weights = nn.Buffer(self._centred(class_weights).expand(types, -1, -1))
        self.type_weights = nn.Buffer(torch.tensor(shares) / sum(shares))

    @property
    def device(self) -> torch.device:
        """Where it is, and its clouds have to be."""
        return self.class_weights.device

    @numpy_in_numpy_out
    def forward(
        self, clouds: Float[Tensor, "b n 3"], indices: Int[Array, " b"] | None = None
    ) -> Float[Tensor, "b c"]:
        """Logits of clouds; ``indices`` key the noise, 0..B−1 if None. NumPy in, NumPy out.

        So a cloud at another place of a batch meets other noise, and its logits differ a little:
        give its index in the dataset, and they do not.
        """
        if indices is None:
            indices = torch.arange(len(clouds), device=clouds.device)
        indices = torch.as_tensor(indices, device=clouds.device)
        return self.draws(clouds, indices, [self.seed])[0]

    def draws(
        self, clouds: Float[Tensor, "b n 3"], indices: Int[Tensor, " b"], seeds: Sequence[int]
    ) -> Float[Tensor, "r b c"]:
        """Logits of R noise seeds in one graph, which attacks on a random model ask for."""
        return self.logits(self.features(clouds, indices, seeds))

    def features(
        self, clouds: Float[Tensor, "b n 3"], indices: Int[Tensor, " b"], seeds: Sequence[int]
    ) -> Float[Tensor, "r b f e"]:
        """Averaged, raw features of R noise seeds in one graph."""
        keys = keyed_random.path_keys(seeds, indices, self.num_noise)  # (B, R, S)
        paths = self.model.encode_paths(clouds, keys.flatten(1), self.timestep, self.grouping)
        return paths.unflatten(1, keys.shape[1:]).mean(2).transpose(0, 1)

    def logits(self, features: Float[Tensor, "*b f e"]) -> Float[Tensor, "*b c"]:
        """Eq. 1 of averaged, raw features."""
        cosine = self.cosines(features)
        return self.model.logit_scale * (cosine if self.penalty is None else cosine - self.penalty)

    def cosines(self, features: Float[Tensor, "*b f e"]) -> Float[Tensor, "*b c"]:
        """Cosines of averaged features and class weights, summed over types by ``type_weights``."""
        unit = self._centred(normalize(features, dim=-1))
        cosine = torch.einsum("...fe,fce->...fc", unit, self.class_weights)
        return torch.einsum("...fc,f->...c", cosine, self.type_weights)

    def _centred(self, unit: Tensor) -> Tensor:
        return unit if self.center is None else normalize(unit - self.center, dim=-1)

    def grid(
        self,
        clouds: Float[Tensor, "b n 3"],
        indices: Int[Tensor, " b"],
        num_noise: Sequence[int],
        timesteps: Sequence[int],
        seeds: Sequence[int],
    ) -> Float[Tensor, "t s r b c"]:
        """Logits of several timesteps × numbers of paths × R noise seeds.

        The same as a classifier of each setting gives, at the cost of the largest S: fewer paths
        are the first of the most, farthest points are found once, and where there is no noise on
        the points the encoder runs once for all paths and seeds.
        """
        keys = keyed_random.path_keys(seeds, indices, max(num_noise))  # (B, R, S)
        grouping = self.grouping or self.model.grouping(clouds)
        logits = []
        for timestep in timesteps:
            features = self.model.encode_paths(clouds, keys.flatten(1), timestep, grouping)
            features = features.unflatten(1, keys.shape[1:])  # (B, R, S, F, E)
            means = [features[:, :, :paths].mean(2).transpose(0, 1) for paths in num_noise]
            logits.append(self.logits(torch.stack(means)))
        return torch.stack(logits)

    def frozen(
        self, clouds: Float[Tensor, "b n 3"], indices: Int[Tensor, " b"]
    ) -> "ZeroShotClassifier":
        """The same classifier with the tokens of these clouds kept, wherever the points move."""
        frozen = copy.copy(self)
        frozen.grouping = self.model.grouping(clouds, neighbours=True)
        return frozen
