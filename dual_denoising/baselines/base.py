"""What every system of the paper's tables offers, and the noise that may be put around it."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dual_denoising.baselines import official
from dual_denoising.clip.features import ClassNames, Text, read_prompts
from dual_denoising.errors import InputError, check, check_number
from dual_denoising.keyed_random import Stream, key
from dual_denoising.model.noising import Noising
from dual_denoising.model.tokens import Grouping

log = logging.getLogger(__name__)

GREY = 0.4  # colour of points without one, as in ULIP's and Uni3D's evaluations
PATHS_AT_ONCE = 32  # noisy clouds in one batch
RANDOM = "random"  # in place of a checkpoint's path


class Baseline(nn.Module, ClassNames):
    """A zero-shot model of another paper, in place of DualDenoising in a ZeroShotClassifier.

    ``encode`` takes clouds (B, N, 3) as this project has them, y-up in the unit sphere, and brings
    them into the frame of its own paper, so that ε means the same for all. It never centres, scales
    or draws points anew, and gradients reach the points. ``class_weights`` gives unit vectors of
    class names to compare with.

    noising: Gaussian noise on the points at test time, averaged over paths (the control of a
    randomised defence); None for the model as it was published, which knows t = 0 alone.
    """

    name: str
    title: str  # in the paper's tables
    own_teacher: str  # whose text features the official evaluation takes, and with which prompts
    own_prompts: str | None = None
    own_sizes: Sequence[tuple[str, int]] = ()  # of the official model
    class_words = ", mean over the prompts"  # how class weights are made
    native_points: int  # points per cloud in the official evaluation
    feature_width: int
    teacher: str = "nothing"  # whose text features the class weights are, in words
    prompts: Sequence[str] = ()
    feature_types = ("baseline",)
    noising: Noising | None = None
    keeps_tokens = False
    origin = ""  # of the weights, in words
    random = False  # whether the weights are

    @property
    def logit_scale(self) -> float | Tensor:
        """Of the cosine."""
        return 100.0

    def deviations(self) -> list[str]:
        """In what this is not the model of the paper's tables; [] where its numbers compare."""
        found = ["no meaning"] if self.random else []
        if self.own_teacher not in self.teacher:
            found.append(f"text of {self.teacher} instead of {self.own_teacher}")
        if self.own_prompts and list(self.prompts) != read_prompts(self.own_prompts):
            found.append(f"{len(self.prompts)} prompts instead of {self.own_prompts}")
        found += [
            f"{key} {getattr(self, key)} instead of {size}"
            for key, size in self.own_sizes
            if getattr(self, key) != size
        ]
        return found

    @abstractmethod
    def encode(self, clouds: Float[Tensor, "b n 3"]) -> Float[Tensor, "b e"]:
        """Features of clouds, not normalised: (B, N, 3) -> (B, E)."""

    @abstractmethod
    def own_weights(self, names: Sequence[str]) -> Float[Tensor, "c e"]:
        """Unit vectors of class names, made as the official evaluation makes them."""

    def class_weights(self, names: Sequence[str], raw_sum: bool = False) -> Float[Tensor, "c e"]:
        """``own_weights``. Raises InputError for ``raw_sum``: no other way is offered."""
        if raw_sum:
            raise InputError("eval.raw_sum is true: a baseline makes class weights in its own way")
        return self.own_weights(names)

    def spelling(self, name: str) -> str:
        """The name as it is."""
        return name

    def center(self, taught: Sequence[str]) -> Float[Tensor, " e"]:
        """Raises InputError: what a baseline was taught is not known."""
        raise InputError("eval.centre is true: a baseline has no bank of names; set it to false")

    def grouping(self, clouds: Tensor, neighbours: bool = False) -> None:
        """None: a baseline cannot keep its tokens. Raises InputError if ``neighbours`` is asked."""
        if neighbours:
            raise InputError(f"grouping is frozen: {self.name} cannot keep its tokens")

    def encode_paths(
        self,
        clouds: Float[Tensor, "b n 3"],
        keys: Int[Tensor, "b s"],
        timestep: int,
        grouping: Grouping | None = None,
    ) -> Float[Tensor, "b s 1 e"]:
        """Raw features of one noise path per key."""
        if self.noising is None or self.noising.is_clean(timestep):
            return self.encode_noisy(clouds, keys, timestep)
        repeated, flat = clouds.repeat_interleave(keys.shape[1], 0), keys.flatten()
        noisy = self.noising.add_noise(repeated, torch.full_like(flat, timestep), flat)
        features = torch.cat([self.encode(part) for part in noisy.split(PATHS_AT_ONCE)])
        return features.unflatten(0, keys.shape)[:, :, None]

    def encode_noisy(
        self, noisy: Float[Tensor, "b n 3"], keys: Int[Tensor, "b s"], timestep: int
    ) -> Float[Tensor, "b s 1 e"]:
        """Raw features of clouds that bear their noise already, the same for every key."""
        return self.encode(noisy)[:, None, None].expand(-1, keys.shape[1], -1, -1)


class PointBaseline(Baseline):
    """A point encoder with an official checkpoint, compared with text features of some CLIP.

    text: those features, where the checkpoint has no text tower.
    """

    outer: Sequence[str]  # where in an official file the weights are
    rules: Sequence[official.Rule]  # official keys to ours
    optional: tuple[str, ...] = ()  # beginnings of keys that some settings do without
    raw_sum = False  # whether class weights are the sum of raw features of the prompts

    def __init__(self, feature_width: int, text: Text | None = None):
        super().__init__()
        self.feature_width, self.text = feature_width, text
        if text is not None:
            self.teacher, self.prompts = text.teacher, text.prompts

    @classmethod
    def from_checkpoint(cls, path: str, **settings) -> Self:
        """An official file, strictly. Sizes that its shapes tell are read off them unless given.

        path: 'random' for seeded random weights, whose numbers mean nothing.
        """
        if path == RANDOM:
            with torch.random.fork_rng():
                torch.manual_seed(int(key(Stream.WEIGHTS, 0)))
                model = cls(**settings)
            model.origin, model.random = f"{RANDOM} weights", True
            log.warning("%s has random weights: its numbers mean nothing", cls.name)
        else:
            fix = "give a file; dual_denoising/baselines/README.md says where each is"
            check("checkpoint", path, path, fix)
            state = official.read(path, cls.rules, cls.outer)
            with official.fitting(path):
                sizes = cls.sizes(state)
            model = cls(**sizes | settings)
            own = model.state_dict()
            used = {k: v for k, v in state.items() if k in own or not k.startswith(cls.optional)}
            with official.fitting(path):
                model.load_state_dict(used)
            model.origin = f"weights of {path}"
        return model.eval().requires_grad_(False)

    @classmethod
    @abstractmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict:
        """Arguments of the constructor that the shapes of renamed weights tell."""

    def own_weights(self, names: Sequence[str]) -> Float[Tensor, "c e"]:
        if self.text is None:
            raise InputError(f"{self.name} has no text tower: give features (baseline.model.text)")
        return self.text.class_weights(names, self.raw_sum)


def check_sizes(name: str, width: int, heads: int, **sizes: int) -> None:
    """Raises InputError where a size is not above 0, or heads do not divide the width."""
    for field, size in (("width", width), ("heads", heads), *sizes.items()):
        check_number(f"{name}.{field}", size, 1)
    check(f"{name}.width", width, width % heads == 0, f"it must be a multiple of heads ({heads})")
