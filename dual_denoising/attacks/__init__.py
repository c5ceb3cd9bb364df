"""Attacks on clouds -> logits, called as torchattacks' are: attack = PGD(model, eps=0.01);
adversarial = attack(clouds, labels)."""

from dual_denoising.attacks.apgd import APGD
from dual_denoising.attacks.base import Attack
from dual_denoising.attacks.blackbox import SPSA, RandomNoise, Square
from dual_denoising.attacks.cw import CW, CWEOT
from dual_denoising.attacks.pgd import EOTPGD, FGM, IFGM, IFGML2, PGD, FeatureAttack
