"""The transformer as the setting `LTXQ_OPTIMIZE` wants it, put together, and what became of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from ltx_core.model.transformer import X0Model

from ltxq_worker.pipeline.denoise import LibraryTransformer, Transformer
from ltxq_worker.pipeline.fast.attention import AttentionKernels
from ltxq_worker.pipeline.fast.compiled import CompiledBlocks
from ltxq_worker.pipeline.fast.graphs import CudaGraphs, GraphedTransformer
from ltxq_worker.pipeline.fast.options import Optimizations
from ltxq_worker.pipeline.fast.transformer import FastTransformer


class FastPath:
    """A transformer's optimizations, switched on."""

    def __init__(self, model: X0Model, chosen: Optimizations, device: torch.device) -> None:
        """`model` is shared, and left as it is."""
        self._chosen = chosen
        self._attention = attention = AttentionKernels(prefer_cudnn=chosen.attention)
        self._blocks: CompiledBlocks | None = None
        self._graphs: GraphedTransformer | None = None
        self.transformer: Transformer = LibraryTransformer(model)
        if not chosen.hoist:
            return
        if chosen.compile:
            self._blocks = CompiledBlocks(device, attention=attention)
        fast = FastTransformer(model, run_block=self._blocks, attention=attention)
        self.transformer = fast
        if chosen.graphs:
            self.transformer = self._graphs = GraphedTransformer(fast, CudaGraphs(device))

    @property
    def optimizations(self) -> Optimizations:
        """Those that are on: chosen, and not stepped down since."""
        return replace(
            self._chosen,
            attention=self._attention.on,
            compile=bool(self._blocks and self._blocks.on),
            graphs=bool(self._graphs and self._graphs.on),
        )

    @property
    def bytes_kept(self) -> int:
        """Of the device, beside what torch counts as allocated."""
        return self._graphs.kept if self._graphs else 0

    def steps_down(self, exc: BaseException) -> bool:
        """Whether the clip that raised `exc` may be tried again: what failed is off from now on."""
        return self._attention.steps_down(exc)

    def forget(self) -> None:
        """Give back what is kept for the last sizes, to be made anew."""
        if self._graphs:
            self._graphs.forget()
