"""What Celery clients, Flower and workers share: the app, and outcomes as Celery's results.

`celery -A ltxq.celery:app …` (Flower, inspect) finds `app`, which is made from the environment.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ltxq.celery.configuration import make_app
from ltxq.celery.outcomes import follow_up, forget_outcome, report_outcome, report_refusal
from ltxq.settings import Settings

__all__ = ["follow_up", "forget_outcome", "make_app", "report_outcome", "report_refusal"]


def __getattr__(name: str) -> Any:
    if name == "app":
        app = make_app(Settings.read())
        app.Worker = _refuse_worker
        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _refuse_worker(**_: object) -> NoReturn:
    raise SystemExit(
        "Celery's worker makes no clips and would take their messages: run `ltxq worker`."
    )
