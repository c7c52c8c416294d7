"""What loading Scope's registry of pipelines does to PyAV: it imports torchvision.io, which has
FFmpeg's log lines come through Python, each thread of a decoder waiting for the GIL with one.
"""

import av.logging

av.logging.set_level(av.logging.ERROR)
