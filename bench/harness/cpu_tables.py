"""Makes the tables of docs/benchmarks.md that need no GPU, from the files in bench/results/.

`docs/generate.py` writes them into the document.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def queue_table() -> str:
    """The queue's overhead, by bench/queue_overhead.py."""
    parts = _read("queue")
    figures = {name: value for part in parts.values() for name, value in part.items()}
    whole = (
        "submissions per second",
        "submissions, % of plain Celery's send_task",
        "the same without Flower's event (%)",
        "pick-up, submit to claim, p50 (ms)",
        "pick-up, submit to claim, p99 (ms)",
        "submit to result at the client p50 (ms)",
        "Redis memory per queued job (bytes)",
        "Redis commands per job, client and worker",
        "GPU idle between two jobs p50 (ms)",
        "GPU idle between two jobs max (ms)",
        "claim to URL without making the clip p50 (ms)",
    )
    rows = [(name, f"{figures[name]:,.0f}") for name in whole]
    share = "two workers' share of one's time"
    return _table(("figure", "measured"), [*rows, (share, f"{figures[share]:.2f}")])


def storms_table() -> str:
    """The outcomes of `make chaos`, summed over all storms in bench/results/chaos.jsonl."""
    storms = [json.loads(line) for line in (RESULTS / "chaos.jsonl").read_text().splitlines()]
    outcomes, faults = Counter[str](), Counter[str]()
    for storm in storms:
        outcomes.update(storm["outcomes"])
        faults.update(storm["faults"])
    worker, host = (f"slowest return of a killed {kind}'s job (s)" for kind in ("worker", "host"))
    rows = [
        ("storms", len(storms)),
        ("jobs accepted from clients", sum(storm["jobs accepted"] for storm in storms)),
        ("accepted jobs that a failover forgot", faults["jobs that a failover forgot"]),
        ("jobs sent by plain Celery producers", faults["plain jobs"]),
        ("of those, lost on their way", faults["plain messages lost on their way"]),
        ("jobs deleted and sent again under their id", faults["jobs sent again"]),
        ("succeeded", outcomes["succeeded"]),
        ("cancelled, as requested", outcomes["cancelled"]),
        ("expired, as requested", outcomes["expired"]),
        ("failed as `worker_lost`, after three killed workers each", outcomes["worker_lost"]),
        ("claims", sum(storm["claims"] for storm in storms)),
        ("slowest return of a killed worker's job (s)", max(storm[worker] for storm in storms)),
        (
            "the same, median of the storms (s)",
            round(statistics.median(storm[worker] for storm in storms), 2),
        ),
        ("slowest return of a killed host's job (s)", max(storm[host] for storm in storms)),
    ]
    return _table(("in all storms", "seen"), [(name, f"{value:,}") for name, value in rows])


def fleet_table() -> str:
    """The capacity of one Redis, by bench/fleet.py."""
    parts = _read("fleet")
    paced = next(rows for title, rows in parts.items() if title.startswith("1,000 workers"))
    fast, deep, asked = (parts[t] for t in ("as fast as it goes", "a deep queue", "asked of it"))
    rows = [
        ("bytes per queued job, message included", deep, "bytes per queued job, message included", 0),
        ("one sweep, nothing wrong (ms)", asked, "one sweep, nothing wrong (ms)", 1),
        ("read the last job, with its position (ms)", asked, "read the last job, with its position (ms)", 1),
        ("claim p99, 1,000 workers with jobs of 20 s (ms)", paced, "claim p99 (ms)", 1),
        ("Redis's CPU meanwhile, share of one core", paced, "Redis busy (share of one core)", 2),
        ("jobs per second, 32 workers without pauses", fast, "jobs per second", 0),
        ("jobs per second for one core of Redis, calculated", fast, "jobs per second a core of Redis would bear", 0),
        ("1,000 leases that end at once, given back in one sweep (ms)", parts["every lease ends at once"], "that sweep (ms)", 0),
        ("one sweep after 30,000 made-up model names (ms)", parts["made-up models"], "one sweep afterwards (ms)", 1),
    ]  # fmt: skip
    return _table(
        ("of one Redis", "seen"),
        [(title, f"{part[name]:,.{digits}f}") for title, part, name, digits in rows],
    )


def gateway_table() -> str:
    """The gateway under load, by bench/gateway.py."""
    measured = _read("gateway")["measured"]
    rows = [
        (
            kind,
            f"{measured[f'{kind} p50 (ms)']:.0f}",
            f"{measured[f'{kind} p99 (ms)']:.0f}",
            f"{measured[f'{kind} errors']}",
        )
        for kind in ("polls", "submissions")
    ]
    return _table(("at the gateway, for a minute", "p50 (ms)", "p99 (ms)", "errors"), rows)


def scope_table() -> str:
    """Playback in Scope's loop, by bench/scope.py."""
    figures = _read("scope")["figures"]
    names = (
        "frames shown",
        "frames lost or shown twice",
        "time stamps that went back",
        "the last frame stood, after prompt change and kill (s)",
        "the last frame stood, otherwise (s)",
        "prompt change to its first frame (s)",
        "sound and picture apart, most (ms)",
    )
    rows = [
        (name, f"{figures[name]:,.{0 if float(figures[name]).is_integer() else 1}f}")
        for name in names
    ]
    return _table(("in five minutes of Scope", "seen"), rows)


def encode_table() -> str:
    """The encoder's CPU time, by bench/encode.py."""
    figures = _read("encode")["figures"]
    rows = [
        (
            f"{_clip(title)}, `{preset}`",
            f"{part['seconds of CPU']:.1f}",
            f"{part['bytes'] / 1e6:.1f}",
        )
        for key, part in figures.items()
        for title, _, preset in (key.partition(" from YUV, "),)
        if preset
    ]
    return _table(("clip, from YUV frames, x264 preset", "seconds of CPU", "MB"), rows)


def load_table() -> str:
    """The speed of loading models, by bench/load.py."""
    parts = _read("load")
    rows = []
    for kind in ("bf16", "bf16 made FP8", "published FP8"):
        disk, cache = parts[f"{kind}, from the disk"], parts[f"{kind}, from the page cache"]
        speeds = [
            f"{part[name]:.2f}"
            for part in (disk, cache)
            for name in ("GB/s", "GB/s of reading alone")
        ]
        rows.append((kind, f"{disk['GB of weights']:.2f}", *speeds))
    head = ("loaded as", "GB of weights", "from the disk (GB/s)", "reading alone")
    return _table((*head, "from the page cache (GB/s)", "reading alone"), rows)


TABLES = {
    "queue": queue_table,
    "storms": storms_table,
    "fleet": fleet_table,
    "gateway": gateway_table,
    "scope": scope_table,
    "encode": encode_table,
    "load": load_table,
}


def _read(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return parsed


def _clip(title: str) -> str:
    """'768x512x33' → '768×512, 33 frames'."""
    width, height, frames = title.split("x")
    return f"{width}×{height}, {frames} frames"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
