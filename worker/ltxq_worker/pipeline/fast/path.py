"""Builds the transformer with the optimizations of `LTXQ_OPTIMIZE`, and tracks which stay on."""

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
    """A transformer with its chosen optimizations."""

    def __init__(self, model: X0Model, chosen: Optimizations, device: torch.device) -> None:
        """`model` is shared and not modified."""
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
        """The optimizations that were chosen and have not been switched off since."""
        return replace(
            self._chosen,
            attention=self._attention.on,
            compile=bool(self._blocks and self._blocks.on),
            graphs=bool(self._graphs and self._graphs.on),
        )

    @property
    def bytes_kept(self) -> int:
        """Device memory kept beside what torch counts as allocated."""
        return self._graphs.kept if self._graphs else 0

    def steps_down(self, exc: BaseException) -> bool:
        """Switch off the optimization that raised `exc`. Returns whether to make the clip again."""
        return self._attention.steps_down(exc)

    def forget(self) -> None:
        """Free the graphs of the last sizes; the next clip is recorded again."""
        if self._graphs:
            self._graphs.forget()
