"""Draws the Grafana dashboard of a queue under load, without Grafana: `python bench/dashboard.py`.

A gateway, two workers with the instant test pipeline and a Prometheus with docker/'s configuration
run for some minutes. Meanwhile jobs arrive in bursts, a worker is killed, storage stops answering,
and one job times out in each burst. Then the queries of every panel in
docker/grafana/dashboards/ltxq.json are run, and the panels are drawn in its layout. Writes
docs/dashboard.webp. Needs Debian's chromium and prometheus.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
if __name__ == "__main__":
    # Replaces this folder, whose modules could hide installed ones.
    sys.path[:1] = [str(TESTS)]

import argparse
import html
import io
import json
import math
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx2
import psutil
from PIL import Image

DASHBOARD = Path(__file__).parents[1] / "docker" / "grafana" / "dashboards" / "ltxq.json"
PICTURE = Path(__file__).parents[1] / "docs" / "dashboard.webp"
RATE_INTERVAL = "15s"  # for $__rate_interval: Prometheus scrapes here every second, not every 15
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#b877d9", "#f2495c", "#8ab8ff", "#96d98d")
SMALL = {"prompt": "a fox", "model": "instant", "width": 64, "height": 64, "num_frames": 9}
BURST_SECONDS, BURST_JOBS = 20, 24
COLUMNS, CELL, ROW = 24, 64, 30  # columns of Grafana's grid; a cell's width and height in pixels
STYLE = """
body { margin: 0; width: 1536px; background: #111217; color: #ccccdc; font: 12px sans-serif }
main { position: relative } section { position: absolute; box-sizing: border-box; padding: 3px }
section > div { height: 100%; box-sizing: border-box; background: #181b1f; padding: 6px 8px;
  border: 1px solid #25282d; overflow: hidden }
h2 { font-size: 15px; margin: 4px } h3 { font-size: 12px; margin: 0 } svg { display: block }
b { display: block; font-size: 40px; text-align: center; color: #73bf69; line-height: 75px }
p { margin: 2px 0; white-space: nowrap; font-size: 11px } i { font-style: normal }
text { fill: #8e8e99 }
"""

Series = tuple[str, list[tuple[float, float]]]  # a name, and pairs of time and value
Ask = Callable[[str, str], list[Series]]  # runs a query; arguments: expression, legend format


def page(dashboard: dict[str, Any], ask: Ask) -> str:
    """The dashboard as HTML."""
    panels = dashboard["panels"]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) * ROW
    drawn = "".join(_panel(panel, ask) for panel in panels)
    return (
        f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>"
        f'<main style="height: {height}px">{drawn}</main>'
    )


def _panel(panel: dict[str, Any], ask: Ask) -> str:
    at, title = panel["gridPos"], html.escape(panel["title"])
    place = (
        f"left: {at['x'] * CELL}px; top: {at['y'] * ROW}px; "
        f"width: {at['w'] * CELL}px; height: {at['h'] * ROW}px"
    )
    if panel["type"] == "row":
        return f'<section style="{place}"><h2>{title}</h2></section>'
    unit = panel["fieldConfig"]["defaults"].get("unit", "none")
    series = [
        one for target in panel["targets"] for one in ask(target["expr"], target["legendFormat"])
    ]
    if panel["type"] == "stat":
        shown = f"<b>{_formatted(series[0][1][-1][1], unit, '.0f') if series else '–'}</b>"
    else:
        shown = _curves(series, unit, at["w"] * CELL - 24, at["h"] * ROW - 96)
    return f'<section style="{place}"><div><h3>{title}</h3>{shown}</div></section>'


def _curves(series: list[Series], unit: str, width: int, height: int) -> str:
    """The series as lines over one axis, with a legend of their names and last values below."""
    points = [point for _, curve in series for point in curve if math.isfinite(point[1])]
    if not points:
        return '<p style="line-height: 120px; text-align: center">No data</p>'
    start, end = min(t for t, _ in points), max(t for t, _ in points)
    top = max(*(value for _, value in points), 1e-9) * 1.1
    lines, names = "", ""
    for number, (name, curve) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(
            f"{60 + (t - start) / max(end - start, 1) * (width - 62):.1f},"
            f"{height - value / top * height:.1f}"
            for t, value in curve
            if math.isfinite(value)
        )
        lines += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        last = f"{html.escape(name)}: {_formatted(curve[-1][1], unit)}"
        names += f'<i style="color: {colour}">▬</i> {last} &nbsp; '
        if number % 3 == 2:
            names += "<br>"
    axis = "".join(
        f'<text x="0" y="{height - share * height + 10:.0f}">{_formatted(share * top, unit)}</text>'
        f'<path d="M60 {height - share * height:.0f}H{width}" stroke="#2c3035"/>'
        for share in (0, 0.5, 1)
    )
    return f'<svg width="{width}" height="{height + 14}">{axis}{lines}</svg><p>{names}</p>'


def _formatted(value: float, unit: str, form: str = ".3g") -> str:
    if not math.isfinite(value):
        return "–"
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    if unit == "percentunit":
        return f"{100 * value:.0f}%"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB", "GiB", "TiB"):
            if abs(value) < 1024 or name == "TiB":
                return f"{value:.3g} {name}"
            value /= 1024
    if unit == "s" and 0 < abs(value) < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:{form}}" + {"s": " s", "reqps": " req/s"}.get(unit, "")


def asking(url: str, start: float, end: float) -> Ask:
    """An `Ask` for the Prometheus at `url` and the time from `start` to `end`."""

    def ask(expr: str, legend: str) -> list[Series]:
        query = expr.replace("$__rate_interval", RATE_INTERVAL).replace("$model", ".*")
        parameters: dict[str, Any] = {"query": query, "start": start, "end": end, "step": 1}
        answer = httpx2.get(f"{url}/api/v1/query_range", params=parameters, timeout=30)
        return [
            (_named(legend, one["metric"]), [(t, float(value)) for t, value in one["values"]])
            for one in answer.raise_for_status().json()["data"]["result"]
        ]

    return ask


def _named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=240, help="of load before the picture")
    options.add_argument("--picture", type=Path, default=PICTURE, help="the WebP to write")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drawn = watched(Path(folder), given.seconds)
    given.picture.write_bytes(photographed(drawn))
    print(f"{given.picture} is written.")


def watched(folder: Path, seconds: int) -> str:
    """The page after `seconds` of load and faults."""
    from fleet import Fleet, worker_environment
    from gateways import Gateway
    from ltxq_worker.embedded.servers import RedisServer, S3Server, free_port
    from prometheus import prometheus
    from receiver import LOOPBACK, SECRET, Receiver

    ports = {"gateway": free_port(), "worker": free_port()}
    metrics = {name: {"LTXQ_METRICS_ADDRESS": f"127.0.0.1:{at}"} for name, at in ports.items()}
    with ExitStack() as parts:
        redis = parts.enter_context(RedisServer.start(folder / "redis"))
        s3 = parts.enter_context(S3Server.start(folder / "s3"))
        settings = worker_environment(redis.url, s3, folder / "spool") | {
            "LTXQ_DEFAULT_MODEL": "instant",
            "LTXQ_INSTANT_SECONDS": "1",
            "LTXQ_WEBHOOK_SECRET": SECRET,
            "LTXQ_WEBHOOK_ALLOW": LOOPBACK,
        }
        receiver = Receiver()
        parts.callback(receiver.stop)
        fleet = parts.enter_context(Fleet(settings | metrics["worker"], gpus="cpu,cpu"))
        gateway = parts.enter_context(Gateway(settings | metrics["gateway"]))
        url = parts.enter_context(prometheus(folder, ports))
        fleet.wait_until_ready(times=2)
        storage = psutil.Process(s3.process.pid)
        troubles = [
            (0.3, lambda: fleet.workers()[0].kill()),
            (0.5, storage.suspend),
            (0.6, storage.resume),
        ]
        began = time.time()
        _work(gateway.api, receiver.url, seconds, troubles)
        return page(json.loads(DASHBOARD.read_text()), asking(url, began, time.time()))


def _work(
    api: str, webhook_url: str, seconds: int, troubles: list[tuple[float, Callable[[], object]]]
) -> None:
    """Submit a burst of jobs of all priorities every twenty seconds, one of them with a timeout of
    1 s, and poll its jobs every second. Call each of `troubles` after its share of the time.
    """
    began, burst = time.monotonic(), 0
    ids: list[str] = []
    with httpx2.Client(base_url=api, timeout=30) as http:
        while (passed := time.monotonic() - began) < seconds:
            while troubles and passed > troubles[0][0] * seconds:
                troubles.pop(0)[1]()
            if passed >= burst * BURST_SECONDS:
                burst += 1
                for number in range(BURST_JOBS):
                    asked = SMALL | {
                        "priority": ("high", "normal", "low")[number % 3],
                        "webhook_url": webhook_url,
                        "timeout": 600 if number else 1,
                    }
                    ids.append(http.post("/jobs", json=asked).raise_for_status().json()["id"])
            for job_id in ids[-BURST_JOBS:]:
                http.get(f"/jobs/{job_id}").raise_for_status()
            time.sleep(1)


def photographed(drawn: str) -> bytes:
    """A screenshot of the page as WebP."""
    from browser import chromium

    with chromium() as browser:
        view = browser.new_page(viewport={"width": COLUMNS * CELL, "height": 900})
        view.set_content(drawn)
        png = view.screenshot(full_page=True)
    picture = io.BytesIO()
    Image.open(io.BytesIO(png)).save(picture, "WEBP", quality=80)
    return picture.getvalue()


if __name__ == "__main__":
    main()
