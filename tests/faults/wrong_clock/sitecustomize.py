"""Loaded by Python at the start of every process that has this folder on its PYTHONPATH: its wall
clock is $LTXQ_TEST_CLOCK seconds off.
"""

import datetime
import os
import time

off = float(os.environ.get("LTXQ_TEST_CLOCK", "0"))
right_time = time.time


class Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.UTC).replace(tzinfo=None)


time.time = lambda: right_time() + off
datetime.datetime = Datetime
