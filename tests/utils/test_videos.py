"""Videos are read and written frame by frame."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from dgnet_det.errors import UserError
from dgnet_det.utils.videos import Video, written_video


def pan(count: int, height: int, width: int) -> list[np.ndarray]:
    """A camera that moves over a photograph, BGR."""
    photo = data.coffee()[:, :, ::-1]
    return [photo[9 * k :, 16 * k :][:height, :width].copy() for k in range(count)]


def write(path: Path, frames: list[np.ndarray], rate: float = 12.5) -> None:
    with written_video(path, rate) as append:
        for frame in frames:
            append(frame)


@pytest.mark.parametrize("size", [(96, 128), (97, 131)])
def test_what_is_written_reads_back_frame_by_frame(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = pan(9, *size)
    write(tmp_path / "pan.mp4", frames)
    assert [path.name for path in tmp_path.iterdir()] == ["pan.mp4"]
    video = Video(tmp_path / "pan.mp4")
    assert (video.rate, video.num_frames) == (12.5, 9)
    found = np.stack(list(video)).astype(float)
    # The codec takes even sizes alone; nothing is cut off.
    height, width = size[0] + size[0] % 2, size[1] + size[1] % 2
    assert found.shape == (9, height, width, 3)
    inner = found[:, : size[0], : size[1]]
    assert np.abs(inner - frames).mean() < 6
    # Each frame is in its place.
    away = np.abs(inner[:, None] - np.stack(frames)[None]).mean(axis=(2, 3, 4))
    assert away.argmin(axis=1).tolist() == list(range(9))


def test_other_containers_are_read(tmp_path: Path) -> None:
    frames = pan(4, 96, 128)
    writer = cv2.VideoWriter(
        str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96)
    )
    for frame in frames:
        writer.write(frame)
    writer.release()
    video = Video(tmp_path / "a.avi")
    assert video.rate == 10
    assert np.abs(np.stack(list(video)).astype(float) - frames).mean() < 6


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"text\.mp4: the video does not decode"):
        Video(tmp_path / "text.mp4")
    write(tmp_path / "whole.mp4", pan(3, 96, 128))
    half = (tmp_path / "whole.mp4").read_bytes()[:2000]
    (tmp_path / "half.mp4").write_bytes(half)
    with pytest.raises(UserError, match=r"half\.mp4: the video does not decode"):
        Video(tmp_path / "half.mp4")


@pytest.mark.parametrize(
    ("frames", "rate", "message"),
    [
        (pan(2, 96, 128), 90000, "codec mp4v, 2 frames, 90000 a second"),
        ([*pan(1, 96, 128), *pan(1, 96, 126)], 25, "2 frames"),
        ([np.zeros((8, 70000, 3), np.uint8)], 25, "1 frames"),
        ([], 25, "0 frames"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, frames: list[np.ndarray], rate: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write(tmp_path / "out.mp4", frames, rate)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    frames = [pan(1, 96, 128)[0], None]
    with pytest.raises(AttributeError):
        write(tmp_path / "out.mp4", frames)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
