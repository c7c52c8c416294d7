"""Loaded by Python at the start of every worker process that has this folder on its PYTHONPATH:
the device fails as a GPU does, with torch's own errors, for a job whose prompt says when.

    "out of memory"          while it denoises
    "break always"           while it denoises, in every attempt
    "break while decoding"   after the first frames, in the first attempt
"""

import sys

from ltxq_worker.process.runner import Runner

MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB."
ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later."
claims = []  # the one being worked on is the last: one job has the GPU


def break_the_device():
    import torch

    ltx = sys.modules["ltxq_worker.pipeline.ltx"]
    denoise, decode, make = ltx.in_one_stage, ltx.Decoding.frames, Runner._make

    def note_the_claim(self, attempt, *rest):
        claims.append(attempt.claim)
        return make(self, attempt, *rest)

    def failing_denoise(*args, **kwargs):
        latents = denoise(*args, **kwargs)  # what it made is alive when it fails
        prompt = claims[-1].request.prompt
        if prompt == "out of memory":
            raise torch.OutOfMemoryError(MEMORY)
        if prompt == "break always":
            raise torch.AcceleratorError(ASSERT)
        return latents

    def failing_decode(*args, **kwargs):
        for chunk in decode(*args, **kwargs):
            yield chunk
            if claims[-1].request.prompt == "break while decoding" and claims[-1].attempt == 1:
                raise torch.AcceleratorError(ASSERT)

    ltx.in_one_stage, ltx.Decoding.frames = failing_denoise, failing_decode
    Runner._make = note_the_claim


prepare = Runner.__post_init__


def prepare_and_break(self):
    prepare(self)
    break_the_device()  # the model is loaded by now


Runner.__post_init__ = prepare_and_break
