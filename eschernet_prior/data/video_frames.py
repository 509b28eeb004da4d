"""Select sharp frames of a video, evenly distributed: the sharpest frame in each of a number of equal time spans.

Sharpness is the variance of the Laplacian of the luminance, which motion blur reduces. It is comparable only between
frames of similar content, such as those within a span.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import UInt8
from nerfstudio.utils.rich_utils import get_progress
from PIL import Image
from rich.markup import escape

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MIN_FRAMES = 3
COMPARED_WIDTH = 480
"""Width in pixels to which the luminance is reduced before its sharpness is measured."""
SPARE_FRAMES = 12
"""Frames per span from which frames that no other frame depends on are not decoded, which is faster."""
JPEG_QUALITY = 95


def sharpness(luminance: UInt8[np.ndarray, "height width"]) -> float:
    """Variance of the Laplacian of a grey picture."""
    return float(cv2.Laplacian(luminance, cv2.CV_32F).var())


def write_sharp_frames(video: Path, folder: Path, count: int, max_size: int) -> dict[str, float]:
    """Write the sharpest frame of each of `count` spans as a JPEG file.

    Args:
        video: A file that FFmpeg's libraries can decode.
        folder: Output folder of `frame_00001.jpg` ….
        count: Number of equal time spans; if the video has fewer frames, all of them are written.
        max_size: Largest length of the longer side in pixels; larger frames are reduced.

    Returns:
        Time in seconds by file name.

    Raises:
        UserError: If the file is not a video, is damaged, or has fewer than three frames.
    """
    written: dict[str, float] = {}
    with _opened(video) as (container, stream):
        length, frames = _extent(container, stream, video)
        spans = min(count, frames)
        if frames >= SPARE_FRAMES * spans:
            stream.codec_context.skip_frame = "NONREF"
        title = escape(f"Choosing {spans} sharp frames of {video.name}")
        with get_progress(title, suffix="frames") as progress:
            task = progress.add_task("", total=spans)
            for frame, time in _sharpest(container, stream, length / spans):
                name = f"frame_{len(written) + 1:05d}.jpg"
                picture = _upright(frame)
                picture.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)
                with atomic_path(folder / name) as partial:
                    picture.save(partial, quality=JPEG_QUALITY, subsampling=0)
                written[name] = time
                progress.update(task, completed=min(len(written), spans))
    if len(written) < MIN_FRAMES:
        raise UserError(
            f"{video} has {len(written)} frames, and poses need at least {MIN_FRAMES}: use a video of several seconds, "
            "taken while walking around the scene."
        )
    return written


@contextmanager
def _opened(video: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first video stream of a file for decoding on all cores; FFmpeg's errors become a `UserError`."""
    import av  # FFmpeg's libraries, loaded only for videos

    av.logging.set_level(av.logging.PANIC)
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise UserError(f"{video} contains no pictures: set --data to a video, or to a folder of photos.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        raise UserError(
            f"{video} cannot be decoded as a video ({error.strerror}): save it as MP4 (H.264), or set --data to a "
            "folder of photos."
        ) from None


def _extent(container: InputContainer, stream: VideoStream, video: Path) -> tuple[float, int]:
    """Read the length in seconds and the number of frames without decoding."""
    assert stream.time_base is not None
    times = [float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.pts is not None]
    if len(times) < MIN_FRAMES:
        raise UserError(
            f"{video} has {len(times)} frames, and poses need at least {MIN_FRAMES}: use a video of several seconds, "
            "taken while walking around the scene."
        )
    container.seek(0)
    first, last = min(times), max(times)
    return (last - first) * len(times) / (len(times) - 1), len(times)


def _sharpest(container: InputContainer, stream: VideoStream, span: float) -> Iterator[tuple[VideoFrame, float]]:
    """Yield the sharpest frame of each span and its time in seconds since the first frame."""
    start: float | None = None
    best: tuple[float, VideoFrame, float] | None = None
    current = 0
    for frame in container.decode(stream):
        if frame.time is None:
            continue
        start = frame.time if start is None else start
        time = frame.time - start
        # A frame at the end of the last span, up to rounding, does not start another span.
        index = int(time / span + 1e-6)
        if index != current and best is not None:
            yield best[1], best[2]
            best = None
        current = index
        height = max(1, round(frame.height * COMPARED_WIDTH / frame.width))
        small = frame.reformat(width=COMPARED_WIDTH, height=height, format="gray").to_ndarray()
        score = sharpness(small)
        if best is None or score > best[0]:
            best = score, frame, time
    if best is not None:
        yield best[1], best[2]


def _upright(frame: VideoFrame) -> Image.Image:
    """Rotate a frame as players show it, by the orientation of the camera that the file records."""
    return frame.to_image().rotate(frame.rotation, expand=True)
