"""The transformer as the setting `LTXQ_OPTIMIZE` wants it, put together, and what became of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from ltx_core.model.transformer import X0Model

from ltxq_worker.pipeline.compiled import CompiledBlocks
from ltxq_worker.pipeline.denoise import LibraryTransformer, Transformer
from ltxq_worker.pipeline.graphs import CudaGraphs, GraphedTransformer
from ltxq_worker.pipeline.optimize import Optimizations
from ltxq_worker.pipeline.transformer import FastTransformer


class FastPath:
    """A transformer's optimizations, switched on."""

    def __init__(self, model: X0Model, chosen: Optimizations, device: torch.device) -> None:
        """`model` is shared, and left as it is."""
        self._chosen = chosen
        self._blocks: CompiledBlocks | None = None
        self._graphs: GraphedTransformer | None = None
        self.transformer: Transformer = LibraryTransformer(model)
        if not chosen.lean:
            return
        if chosen.compile:
            self._blocks = CompiledBlocks(device, cudnn=chosen.attention)
        fast = FastTransformer(model, run_block=self._blocks, cudnn=chosen.attention)
        self.transformer = fast
        if chosen.graphs:
            self.transformer = self._graphs = GraphedTransformer(fast, CudaGraphs(device))

    @property
    def optimizations(self) -> Optimizations:
        """Those that are on: chosen, and not stepped down since."""
        return replace(
            self._chosen,
            compile=bool(self._blocks and self._blocks.on),
            graphs=bool(self._graphs and self._graphs.on),
        )

    @property
    def bytes_kept(self) -> int:
        """Of the device, beside what torch counts as allocated."""
        return self._graphs.kept if self._graphs else 0

    def forget(self) -> None:
        """Give back what is kept for the last sizes, to be made anew."""
        if self._graphs:
            self._graphs.forget()
