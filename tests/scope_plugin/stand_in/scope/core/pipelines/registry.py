"""Sets PyAV's log callback, as Scope's pipeline registry does by importing torchvision.io.

FFmpeg then logs through Python: a decoder thread that logs waits for the GIL.
"""

import av.logging

av.logging.set_level(av.logging.ERROR)
