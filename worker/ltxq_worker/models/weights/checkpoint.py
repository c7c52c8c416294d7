"""Loads a checkpoint's parts onto the device, built by ltx-core's configurators.

ltx-core's own builder leaves a missing weight uninitialised and only logs it. Here the weights of a
part and those of the file must match exactly. Each weight is read once, in the order of the file,
and converted to the part's format: bf16, or FP8 with scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ltx_core.loader.sd_ops import SDOps
from safetensors import SafetensorError, safe_open

from ltxq.errors import ModelUnusable
from ltxq_worker.models.catalog import how_to_repair
from ltxq_worker.models.files.header import SafetensorsHeader
from ltxq_worker.models.weights import fp8

LoadReport = Callable[[str, float], None]  # the part being loaded; share done of the whole, 0..1
Build = Callable[[dict[str, Any]], torch.nn.Module]
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """A part of a model on the meta device, which the file has all weights for."""

    what: str
    module: torch.nn.Module
    names: dict[str, str]  # of its weights: in the file, and by `keys`, in the order of the file
    keys: SDOps
    until: float  # the share of all loading that is done with it


@dataclass
class Checkpoint:
    """Reads one checkpoint file onto a device, part by part, and reports progress.

    All parts are planned before the first is loaded: a file that does not fit is refused before
    gigabytes are read.

    Raises:
        ModelUnusable: the header of `path` can no longer be read.
    """

    path: Path
    config: dict[str, Any]
    device: torch.device
    report: LoadReport
    done: float  # the share of all loading that is done already
    fp8_scales: dict[str, float]  # of `ModelFolder`

    def __post_init__(self) -> None:
        self._again = how_to_repair(self.path)
        self._tensors = SafetensorsHeader.read(self.path, self._again).tensors

    def fp8_layers(self, keys: SDOps) -> list[str]:
        """The layers whose weights are stored in FP8, by their names in the part that `keys`
        selects.
        """
        weights = (keys.apply_to_key(name) for name in self.fp8_scales)
        return [weight.removesuffix(fp8.WEIGHT) for weight in weights if weight]

    def plan(self, what: str, build: Build, keys: SDOps, until: float) -> Part:
        """Build one part on the meta device, to be filled with the weights that `keys` selects.

        Raises:
            ModelUnusable: the part cannot be built, or its weights do not match the file's.
        """
        try:
            with torch.device("meta"):
                module = build(self.config)
        except (KeyError, TypeError, ValueError, NotImplementedError) as exc:
            raise ModelUnusable(
                f"{self.path} describes a {what} that this ltx-core cannot build: {exc!r}.",
                hint="Use an LTX-2 or LTX-2.3 checkpoint: `ltxq model list` lists them.",
            ) from exc
        names = self._select(keys)
        self._check(what, module.state_dict(), names, keys)
        return Part(what, module, names, keys, until)

    def load(self, part: Part) -> torch.nn.Module:
        """Fill a part: in FP8 for an `Fp8Linear`, else in bf16.

        Raises:
            ModelUnusable: the file cannot be read.
        """
        module = part.module
        module.load_state_dict(self._read(part), strict=True, assign=True)
        self.done = part.until
        module.requires_grad_(False)
        return module.to(self.device).eval()  # moves computed filters, which are in no file

    def _select(self, keys: SDOps) -> dict[str, str]:
        """The part's weights: name in the file to name by `keys`, in the order of the file."""
        names = sorted(self._tensors, key=lambda name: self._tensors[name].start)
        found = ((name, keys.apply_to_key(name)) for name in names)
        return {
            name: key
            for name, key in found
            if key and not _elsewhere(key) and not self._is_scale(name)
        }

    def _is_scale(self, name: str) -> bool:
        """Whether a tensor is the scale of an FP8 weight or of its layer's inputs. Input scales of
        published files are not used: `Fp8Linear` computes them from the inputs.
        """
        layer, dot, kind = name.rpartition(".")
        return dot + kind in (fp8.SCALE, fp8.INPUT_SCALE) and layer + fp8.WEIGHT in self.fp8_scales

    def _check(self, what: str, expected: Weights, mine: dict[str, str], keys: SDOps) -> None:
        """Check names and shapes before reading. Scales of an `Fp8Linear` come with its weight."""
        wanted = {key: value for key, value in expected.items() if not key.endswith(fp8.SCALE)}
        found: Weights = {}
        for name, key in mine.items():
            shaped = torch.empty(self._tensors[name].shape, device="meta")
            found |= keys.apply_to_key_value(key, shaped)
        both = wanted.keys() & found.keys()
        for problem, names in (
            ("lacks", wanted.keys() - found.keys()),
            ("has unknown", found.keys() - wanted.keys()),
            ("has misshapen", {key for key in both if wanted[key].shape != found[key].shape}),
        ):
            if names:
                raise ModelUnusable(
                    f"{self.path} {problem} weights of the {what}: "
                    f"{', '.join(sorted(names)[:3])} ({len(names)} in all).",
                    hint=self._again,
                )

    def _read(self, part: Part) -> Weights:
        """Read and convert one weight at a time, so that the whole is never in memory twice."""
        weights: Weights = {}
        expected = part.module.state_dict()
        in_fp8 = {key for key, value in expected.items() if value.dtype == torch.float8_e4m3fn}
        total, read = sum(self._tensors[name].size for name in part.names), 0
        try:
            with safe_open(self.path, framework="pt", device=str(self.device)) as file:
                for name, key in part.names.items():
                    share = read / total * (part.until - self.done)
                    self.report(part.what, self.done + share)
                    read += self._tensors[name].size
                    value, scale = file.get_tensor(name), self.fp8_scales.get(name)
                    if key in in_fp8:
                        weights |= fp8.state(key, value, scale)
                    else:
                        value = fp8.in_bf16(value, scale)
                        weights |= part.keys.apply_to_key_value(key, value)
        except (OSError, SafetensorError) as exc:
            raise ModelUnusable(f"{self.path} cannot be read: {exc}.", hint=self._again) from exc
        return weights


def _elsewhere(key: str) -> bool:
    """Whether a key belongs to another part, or to none.

    The text connectors are among the transformer's keys. The published VAEs have more statistics
    than the two the decoders use, as diffusers' conversion of these files shows.
    """
    return key.startswith(("video_embeddings_connector.", "audio_embeddings_connector.")) or (
        key.startswith("per_channel_statistics.")
        and not key.endswith((".mean-of-means", ".std-of-means"))
    )
