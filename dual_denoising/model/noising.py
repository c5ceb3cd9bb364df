"""Point noise: its strength at a timestep, and what the network is told of it (Section 3.1)."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from dual_denoising import keyed_random
from dual_denoising.keyed_random import POINT_NOISE, TIMESTEP


@dataclass
class Noising:
    """The linear noise schedule. σ and s are lengths in clouds of radius 1.

    scale: s, the standard deviation at the last timestep. steps: T. merge: Δ of Section 3.3.
    """

    scale: float = 0.08
    steps: int = 1000
    merge: int = 100

    def draw_timesteps(self, keys: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """t ~ U{0..T−1}, one per key."""
        drawn = keyed_random.uniform(keyed_random.key(keys, TIMESTEP), 1)[:, 0]
        return (drawn * self.steps).long().clamp(max=self.steps - 1)

    def sigma(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """σ_t = s·t/(T−1), from 0 to s."""
        return self.scale * t / (self.steps - 1)

    def weight(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """λ_t = 1/(1 + σ_t²), the weight of the point loss: from 1 down to 0.994 at s = 0.08."""
        return 1 / (1 + self.sigma(t).square())

    def merged(self, t: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """t' = ⌊t/Δ⌋, all that the network is told of the timestep (Section 3.3)."""
        return t // self.merge

    def is_clean(self, t: int) -> bool:
        """Whether σ_t is 0, so that all noise paths see the same points."""
        return t == 0 or self.scale == 0

    def add_noise(
        self, clean: Float[Tensor, "b n 3"], t: Int[Tensor, " b"], keys: Int[Tensor, " b"]
    ) -> Float[Tensor, "b n 3"]:
        """Eq. 2 with γ ≡ 1: z_t = z_0 + σ_t·ε₁, where ε₁ is a function of the keys."""
        epsilon = keyed_random.gaussian(keyed_random.key(keys, POINT_NOISE), *clean.shape[1:])
        sigma = self.sigma(t).to(clean.dtype)
        return clean + sigma[:, None, None] * epsilon.to(clean.dtype)
