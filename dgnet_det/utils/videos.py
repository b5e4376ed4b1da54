"""Video files, one frame at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from dgnet_det.errors import UserError
from dgnet_det.utils.files import written_whole

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
# MPEG-4 in .mp4: part of every FFmpeg, and so of OpenCV's wheels, which have no encoder for H.264.
CODEC, SUFFIX = "mp4v", ".mp4"
DEFAULT_RATE = 25.0  # frames a second, where the file does not say


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class Video:
    """A video file that is read once, with its frames a second as ``rate``, and the header's
    ``num_frames``, 0 if it does not state any."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: the file does not decode.
        """
        self._capture = cv2.VideoCapture(str(path))
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= 1000 else DEFAULT_RATE
        self.num_frames = max(0, round(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        if not self._capture.grab():
            raise UserError(f"{path}: the video does not decode: convert it to .mp4 or .avi")

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames in order, each [H, W, 3] BGR, uint8."""
        decoded, frame = self._capture.retrieve()
        while decoded:
            yield frame
            decoded, frame = self._capture.read()
        self._capture.release()


@contextmanager
def written_video(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends a frame, [H, W, 3] BGR, uint8, to the video ``path``, which
    appears if the body succeeds. Frames have one size; the last row or column of an odd size is
    written twice, as the codec takes even sizes alone.

    Raises:
        UserError: the video cannot be written.
    """
    writer, count = cv2.VideoWriter(), 0
    with written_whole(path) as temporary:

        def append(frame: np.ndarray) -> None:
            nonlocal count
            height, width = frame.shape[:2]
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            if count == 0:
                size = frame.shape[1], frame.shape[0]
                writer.open(str(temporary), cv2.VideoWriter.fourcc(*CODEC), rate, size)
            writer.write(frame)
            count += 1

        try:
            yield append
        finally:
            writer.release()
        # OpenCV is silent where it fails to write.
        if not count or cv2.VideoCapture(str(temporary)).get(cv2.CAP_PROP_FRAME_COUNT) != count:
            raise UserError(
                f"{path}: OpenCV cannot write this video (codec {CODEC}, {count} frames,"
                f" {rate:g} a second): see whether the disk is full"
            )
