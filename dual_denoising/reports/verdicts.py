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
        key = r.track, r.norm, r.num_noise, r.timestep
        groups.setdefault(key, []).append(r)
    for (track, norm, paths, step), mine in groups.items():
        for name, complaint in _checks(mine):
            ball = "" if norm == "linf" else f" ({norm})"
            title = f"{track}{ball}: {name}, S = {paths}, t = {step}"
            found[title] = f"suspicious: {complaint}" if complaint else "pass"
    return found


def _size(result: Result) -> float:
    return result.eps or 0.0


def _checks(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    white = [r for r in results if r.kind == "white" and r.eps is not None]
    if not white:
        return
    flat = max(r.flat for r in white)
    yield "gradients are not zero", f"zero on {flat} of {white[0].n} clouds" if flat else ""
    for attack in dict.fromkeys(r.attack for r in white):
        mine = [r for r in white if r.attack == attack]
        sizes = sorted((r for r in mine if r.last), key=_size)
        if len(sizes) > 1:
            yield f"{attack}: accuracy falls with ε", _rises(sizes, "eps") or _stays(sizes)
        for eps in dict.fromkeys(r.eps for r in mine):
            steps = sorted((r for r in mine if r.eps == eps), key=lambda r: r.steps or 0)
            if len(steps) > 1:
                yield f"{attack}, ε={eps:g}: accuracy falls with steps", _rises(steps, "steps")
                yield f"{attack}, ε={eps:g}: steps suffice", _unfinished(steps)
    largest = min((r for r in white if r.last), key=lambda r: (-_size(r), r.robust_mean))
    if _size(largest) >= HUGE and largest.norm != "l2":
        left = largest.robust_mean
        text = f"{100 * left:.1f}% survive ε={largest.eps:g}"
        yield "a huge ε reaches 0", text if left > 1 / largest.n else ""
    for other in results:
        rivals = [r for r in white if r.last and r.eps == other.eps]
        if not rivals or other.kind in ("white", "worst"):
            continue
        best = min(rivals, key=lambda r: r.robust_mean)
        name = f"{other.attack}, ε={other.eps:g}: weaker than {best.attack}"
        yield name, _stronger(other, best)


def _slack(*results: Result) -> float:
    return 2 * max(r.robust_sd for r in results) + 1 / results[0].n


def _rises(ordered: Sequence[Result], along: str) -> str:
    for before, after in pairwise(ordered):
        if after.robust_mean > before.robust_mean + _slack(before, after):
            return (
                f"{100 * before.robust_mean:.1f}% at {along} {getattr(before, along):g}, "
                f"{100 * after.robust_mean:.1f}% at {getattr(after, along):g}"
            )
    return ""


def _stays(sizes: Sequence[Result]) -> str:
    (small, first), (large, last) = ((r.eps, r.robust_mean) for r in (sizes[0], sizes[-1]))
    if last < first or first <= 1 / sizes[0].n:
        return ""
    return f"it stays, {100 * first:.1f}% at eps {small:g}, {100 * last:.1f}% at {large:g}"


def _unfinished(steps: Sequence[Result]) -> str:
    before, last = steps[-2:]
    fall = before.robust_mean - last.robust_mean
    return (
        f"still fell by {100 * fall:.1f} points at the end" if fall > _slack(before, last) else ""
    )


def _stronger(other: Result, white: Result) -> str:
    gap = white.robust_mean - other.robust_mean
    if gap > _slack(other, white):
        return f"{100 * gap:.1f} points stronger"
    lost = other.clean_mean - other.robust_mean
    taken = white.clean_mean - white.robust_mean
    if other.kind == "noise" and _size(other) < HUGE and 2 * lost + _slack(other, white) > taken:
        return f"takes {100 * taken:.1f} points, noise {100 * lost:.1f}: is it an attack at all?"
    return ""
