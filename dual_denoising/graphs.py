"""CUDA graphs: all kernels of a call launched as one, for shapes that come again."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MOST = 4  # shapes that are captured; each keeps the memory of one call


class Captured:
    """Calls ``function``, tensors -> tuple of tensors, as a captured graph on a GPU.

    The function must wait for no device, copy nothing to it, and depend on nothing but its tensors
    and weights that stay where they are. The first call with shapes that are new runs it as it is,
    the second captures; shapes beyond MOST, and CPUs, are always served as they are.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]):
        self.function, self.seen, self.graphs, self.most = function, set(), {}, MOST

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)
        known = shapes in self.graphs
        if not inputs[0].is_cuda or (not known and len(self.graphs) >= self.most):
            return self.function(*inputs)
        if shapes not in self.seen:
            self.seen.add(shapes)
            return self.function(*inputs)
        with torch.inference_mode(False), torch.no_grad():  # what is held outlives either mode
            if not known:
                try:
                    self.graphs[shapes] = self._capture(inputs)
                except torch.OutOfMemoryError:
                    log.warning("no memory for a CUDA graph of %s; going on without", shapes[0][0])
                    self.graphs, self.most = {}, 0
                    return self.function(*inputs)
            graph, held, outputs = self.graphs[shapes]
            for place, value in zip(held, inputs, strict=True):
                place.copy_(value)
            graph.replay()
            return tuple(output.clone() for output in outputs)

    def __getstate__(self) -> dict:
        """Copies and pickles capture anew: a graph belongs to the memory it was captured in."""
        return {"function": self.function, "seen": set(), "graphs": {}, "most": self.most}

    def _capture(self, inputs: tuple[Tensor, ...]):
        held = [x.detach().clone() for x in inputs]
        with torch.cuda.device(held[0].device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):  # libraries choose, and Triton compiles, before the capture
                    self.function(*held)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=aside):
                outputs = self.function(*held)
        return graph, held, outputs
