"""What a live `/metrics` says, for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from fleet import PATIENCE


@dataclass(frozen=True)
class Scrape:
    """One answer of `/metrics`."""

    text: str
    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float] = field(repr=False)

    @classmethod
    def of(cls, port: int) -> Self:
        """What is served on a port of loopback now."""
        answer = urllib3.request("GET", f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE)
        assert answer.status == 200
        return cls.read(answer.data.decode())

    @classmethod
    def read(cls, text: str) -> Self:
        samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        return cls(text, samples)

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the samples of that name with these labels; None: there is none."""
        wanted = set(labels.items())
        found = [v for (n, held), v in self.samples.items() if n == name and wanted <= held]
        return sum(found) if found else None

    def labels(self, name: str, label: str) -> set[str]:
        """The values a label has."""
        return {dict(held)[label] for (n, held) in self.samples if n == name}

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {name for name, _ in self.samples}
