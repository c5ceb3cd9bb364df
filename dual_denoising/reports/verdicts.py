"""What a sceptical reader asks of a robustness table first, answered from its own numbers.

After Athalye et al. 2018 and Carlini et al. 2019: a defence that only hides its gradients fails
one of these.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from dual_denoising.evaluation.result import Result

HUGE = 0.5  # ε of a coordinate, in radii: nothing of the shape is left to defend


def verdicts(results: Sequence[Result]) -> dict[str, str]:
    """{check: 'pass' or 'suspicious: why'} for every track and (S, t); {} for nothing to check.

    A difference counts from two standard deviations over noise seeds and one cloud on.
    """
    found: dict[str, str] = {}
    groups: dict[tuple, list] = {}
    for r in results:
        groups.setdefault((r.track, r.norm, *r.setting), []).append(r)
    for (track, norm, paths, step), mine in groups.items():
        here = [r for r in results if (r.norm, *r.setting) == (norm, paths, step)]
        noise = [r for r in here if r.kind == "noise" and r.track != track]
        for name, complaint in _checks(mine, noise):
            ball = "" if norm == "linf" else f" ({norm})"
            title = f"{track}{ball}: {name}, S = {paths}, t = {step}"
            found[title] = f"suspicious: {complaint}" if complaint else "pass"
    return found


def _checks(results: Sequence[Result], noise: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """noise: of the other track, in the same ball at the same (S, t)."""
    white = [r for r in results if r.kind == "white" and r.eps is not None]
    if not white:
        return
    flat = max(r.flat for r in white)
    yield "gradients are not zero", f"zero on {flat} of {white[0].n} clouds" if flat else ""
    for attack in dict.fromkeys(r.attack for r in white):
        mine = [r for r in white if r.attack == attack]
        sizes = sorted((r for r in mine if r.last), key=lambda r: r.eps or 0)
        if len(sizes) > 1:
            stays = sizes[-1].robust_mean >= sizes[0].robust_mean > 1 / sizes[0].n
            same = f"it stays, {_both(sizes[0], sizes[-1], 'eps')}" if stays else ""
            yield f"{attack}: accuracy falls with ε", _rises(sizes, "eps") or same
        for eps in dict.fromkeys(r.eps for r in mine):
            steps = sorted((r for r in mine if r.eps == eps), key=lambda r: r.steps or 0)
            if len(steps) > 1:
                yield f"{attack}, ε={eps:g}: accuracy falls with steps", _rises(steps, "steps")
                fall, more = steps[-2].robust_mean - steps[-1].robust_mean, _slack(*steps[-2:])
                still = f"still fell by {100 * fall:.1f} points at the end" if fall > more else ""
                yield f"{attack}, ε={eps:g}: steps suffice", still
    largest = min((r for r in white if r.last), key=lambda r: (-(r.eps or 0), r.robust_mean))
    if (largest.eps or 0) >= HUGE and largest.norm != "l2":
        left = largest.robust_mean
        text = f"{100 * left:.1f}% survive ε={largest.eps:g}"
        yield "a huge ε reaches 0", text if left > 1 / largest.n else ""
    for other in (*results, *noise):
        rivals = [r for r in white if r.last and r.eps == other.eps]
        if rivals and other.kind not in ("white", "worst"):
            best = min(rivals, key=lambda r: r.robust_mean)
            yield (
                f"{other.attack}, ε={other.eps:g}: weaker than {best.attack}",
                _stronger(other, best),
            )


def _slack(*results: Result) -> float:
    return 2 * max(r.robust_sd for r in results) + 1 / results[0].n


def _both(one: Result, other: Result, along: str) -> str:
    return (
        f"{100 * one.robust_mean:.1f}% at {along} {getattr(one, along):g}, "
        f"{100 * other.robust_mean:.1f}% at {getattr(other, along):g}"
    )


def _rises(ordered: Sequence[Result], along: str) -> str:
    for before, after in pairwise(ordered):
        if after.robust_mean > before.robust_mean + _slack(before, after):
            return _both(before, after, along)
    return ""


def _stronger(other: Result, white: Result) -> str:
    gap = white.robust_mean - other.robust_mean
    if gap > _slack(other, white):
        return f"{100 * gap:.1f} points stronger"
    lost, taken = (r.clean_mean - r.robust_mean for r in (other, white))
    small = other.kind == "noise" and (other.eps or 0) < HUGE
    if small and 2 * lost + _slack(other, white) > taken:
        few = f"{white.n} clouds are too few to tell"
        doubt = "is it an attack at all?" if 2 * lost > taken else few
        return f"takes {100 * taken:.1f} points, noise {100 * lost:.1f}: {doubt}"
    return ""
