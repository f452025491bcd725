"""Run by ComfyUI's Python, which has PyAV: a clip of five frames for Load Video, at the path given."""

import sys

import av
import numpy as np

with av.open(sys.argv[1], "w") as container:
    stream = container.add_stream("libx264", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for index in range(5):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * index, dtype=np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
