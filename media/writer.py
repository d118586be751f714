"""Video files and folders of frames, written in a stream; complete or not there at all."""

from __future__ import annotations

import os
import re
import shutil
import weakref
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from PIL import Image

from .audio import AudioCopy
from .errors import InputError
from .files import reserve, write_error
from .image import XMP, save_image

VIDEO_ENDINGS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".gif")

# One core, 512 x 512 talking head, colour conversion included, PSNR in RGB (PyAV 18.1):
# superfast 277 frames/s, 1.0 MB, 43.4 dB; veryfast 171, 0.6 MB, 43.1 dB; fast 91, 0.56 MB, 44.4 dB; medium 83.
# No B-frames: 20 % larger and a little faster, but decoding order is order of time, without which MP4 files of variable
# rate claim wrong durations.
_H264 = {"preset": "veryfast", "crf": "16", "bf": "0"}
_VP9 = {"deadline": "realtime", "cpu-used": "5", "row-mt": "1", "crf": "20", "b": "0"}
_TICK = Fraction(1, 90_000)
_THREADS = 2


class _Sink:
    """What both writers share: `with`, and a clean folder whatever happens."""

    def write(self, image: np.ndarray, time: float | Fraction | None = None) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()  # also on KeyboardInterrupt


class VideoWriter(_Sink):
    """Frames into a video file; use it in a `with`.

        with VideoWriter("out.mp4", (512, 512), 25, audio_from="driving.mp4") as writer:
            for frame in frames:
                writer.write(frame.image, frame.time)

    The file appears under its name when the block ends well. After an exception or an interrupt nothing is left, and a
    file that was there before stays as it was. H.264 (`.mp4 .mov .m4v .mkv`: high quality, crf 16, yuv420p), VP9
    (`.webm`), or a palette per frame (`.gif`, times in 1/100 s). Colours are tagged and converted as BT.709 limited
    range, which every player assumes or reads. H.264 and VP9 want even sizes: an odd side gets one more row or column,
    a copy of the last one; nothing is scaled or cut. Memory does not grow with the length.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        fps: float | Fraction,
        *,
        audio_from: str | Path | None = None,
        audio_start: float = 0.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            path: ends in one of `VIDEO_ENDINGS`; missing folders are made.
            size: (height, width) of the frames in pixels.
            fps: frames per second; with explicit times only a hint and the length of the last frame.
            audio_from: a clip whose sound is taken over, if it has any; cut where the pictures end.
            audio_start: the moment of that clip, in seconds, that belongs to time 0 here.
            metadata: texts for the file's header; MP4 and MOV keep the usual keys (title, artist, comment,
                description, copyright, ...), Matroska and WebM any, GIF none. The entry `image.XMP`, an XMP packet,
                becomes the box that MP4 and MOV have for it.
        Raises:
            InputError: unknown ending, no permission, `audio_from` is not a readable clip.
        """
        path = Path(path)
        self._suffix = path.suffix.lower()
        _check_video_ending(path)
        if fps <= 0 or min(size) < 1:
            raise ValueError(f"VideoWriter: size and fps must be positive, got {size} and {fps}.")
        self.path, self.size = path, (int(size[0]), int(size[1]))
        self.fps = Fraction(fps).limit_denominator(100_000)
        self.frame_count = 0
        self._last: Fraction | None = None
        self._explicit: bool | None = None
        self._audio: AudioCopy | None = None
        self._codec = _codec(path, self._suffix)
        self._target, self._temporary = reserve(path)
        self._cleanup = weakref.finalize(self, _remove, self._temporary)  # also at interpreter exit
        try:
            options = {"movflags": "+faststart"} if self._suffix in (".mp4", ".mov", ".m4v") else {}
            self._container = av.open(f"file:{self._temporary}", "w", format=_MUXER.get(self._suffix), options=options)
            texts = dict(metadata or {})
            self._xmp = texts.pop(XMP, None) if options else None
            self._container.metadata.update(texts)
            self._open_video()
            if audio_from is not None and self._suffix != ".gif":
                self._audio = AudioCopy(audio_from, self._container, self._suffix, audio_start)
        except BaseException as error:
            self.abort()
            if isinstance(error, av.error.FFmpegError | OSError):
                raise write_error(path, error) from error
            raise

    def write(self, image: np.ndarray, time: float | Fraction | None = None) -> None:
        """Add a frame.

        Args:
            image: (H, W, 3) uint8, RGB, of the writer's size.
            time: when it is shown, in seconds from 0, rising; keeps the driving clip's variable frame rate. Without
                it frame k is shown at k / fps. Give it for all frames or for none.
        """
        if image.shape != (*self.size, 3) or image.dtype != np.uint8:
            raise ValueError(f"VideoWriter: frame must be uint8 {(*self.size, 3)}, got {image.dtype} {image.shape}.")
        if self._explicit not in (None, time is not None):
            raise ValueError("VideoWriter: give a time with every frame or with none.")
        self._explicit = time is not None
        moment = self.frame_count / self.fps if time is None else Fraction(time)
        if self._last is not None and moment - self._last < self._tick:
            raise ValueError(f"VideoWriter: times must rise, got {float(moment)} after {float(self._last)} s.")
        if moment < 0:
            raise ValueError(f"VideoWriter: times start at 0, got {float(moment)} s.")
        self._last = moment
        try:
            self._encode(image, moment)
            if self._audio is not None:
                self._audio.feed(float(moment))
        except (av.error.FFmpegError, OSError) as error:
            self.abort()
            raise write_error(self.path, error) from error
        self.frame_count += 1

    def close(self) -> None:
        """Finish the file and give it its name; a second call does nothing.

        Raises:
            InputError: no frame was written, or the disk is full.
        """
        if not self._cleanup.alive:
            return
        if self._last is None:
            self.abort()
            raise InputError(f"{self.path} was not written: there was no frame to put into it.")
        try:
            if self._graph is not None:
                self._graph.push(None)
                self._drain_graph()
            self._mux(self._stream.encode(None))
            if self._audio is not None:
                self._audio.feed(float(self._last + 1 / self.fps))
                self._audio.close()
            self._container.close()
            if self._xmp is not None:
                with open(self._temporary, "ab") as file:
                    file.write(_xmp_box(self._xmp.encode()))
            os.replace(self._temporary, self._target)
            self._cleanup.detach()
        except (av.error.FFmpegError, OSError) as error:
            self.abort()
            raise write_error(self.path, error) from error
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Give up: nothing of this writer stays on the disk."""
        if not self._cleanup.alive:
            return
        try:
            if self._audio is not None:
                self._audio.close()
            if hasattr(self, "_container"):
                self._container.close()
        except (av.error.FFmpegError, OSError, ValueError):
            pass  # the file is thrown away; that it could not be finished does not matter
        finally:
            self._cleanup()

    @property
    def _tick(self) -> Fraction:
        return Fraction(1, 100) if self._suffix == ".gif" else _TICK

    def _open_video(self) -> None:
        height, width = self.size
        self._graph: Graph | None = None
        self._reformat = VideoReformatter()
        name, options = self._codec
        stream = self._container.add_stream(name, rate=self.fps, options=dict(options))
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.time_base = self._tick
        self._stream = stream
        if name == "gif":
            stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
            self._graph = _palette_graph(width, height, self._tick)
            return
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        context.thread_count = _THREADS
        context.colorspace, context.color_range = 1, ColorRange.MPEG  # 1: BT.709 in AVColorSpace
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709

    def _encode(self, image: np.ndarray, moment: Fraction) -> None:
        if self._graph is None:
            height, width = self.size
            if height % 2 or width % 2:
                image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = self._reformat.reformat(
                frame,
                format="yuv420p",
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                dst_colorspace=Colorspace.ITU709,
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP,
                threads=1,
            )
        else:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = round(moment / self._tick), self._tick
        frame.duration = round(1 / self.fps / self._tick)
        if self._graph is None:
            self._mux(self._stream.encode(frame))
        else:
            self._graph.push(frame)
            self._drain_graph()

    def _drain_graph(self) -> None:
        assert self._graph is not None
        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(frame, av.VideoFrame)
            self._mux(self._stream.encode(frame))

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            self._container.mux(packet)


class FramesWriter(_Sink):
    """Lossless PNG frames `0000000.png`, `0000001.png`, ... in a folder, FOMM's layout; use it in a `with`.

    The frames are collected in a hidden folder beside it, which takes the place of the folder when the block ends well;
    after an exception or an interrupt nothing is left. A folder that an earlier run wrote is replaced as a whole, so
    frames of a longer run never stay behind; a folder with anything else in it, other frames included, is refused.
    (Runs are told by a text chunk in the first PNG: a marker file would count as a frame for FOMM's readers.)
    """

    def __init__(self, folder: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
        """
        Args:
            folder: made where it is missing.
            metadata: texts stored in every PNG.
        Raises:
            InputError: the folder holds other files, is a file, or may not be written.
        """
        self.path = Path(folder)
        self.frame_count = 0
        self._metadata = {**_MARK, **(metadata or {})}
        self._target = Path(os.path.realpath(folder))
        if self._target.exists():
            _check_replaceable(self.path, self._target)
        self._temporary = reserve(self._target.with_name(f"{self._target.name}.frames"))[1]
        self._temporary.unlink()
        self._temporary.mkdir()
        self._cleanup = weakref.finalize(self, _remove, self._temporary)  # also at interpreter exit

    def write(self, image: np.ndarray, time: float | Fraction | None = None) -> None:
        """Add a frame, (H, W, 3) uint8 RGB; the time is not kept, PNG files have none."""
        try:
            save_image(self._temporary / f"{self.frame_count:07d}.png", image, metadata=self._metadata)
        except InputError:
            self.abort()
            raise
        self.frame_count += 1

    def close(self) -> None:
        """Give the folder its name; a second call does nothing.

        Raises:
            InputError: no frame was written, or the folder may not be replaced.
        """
        if not self._cleanup.alive:
            return
        if self.frame_count == 0:
            self.abort()
            raise InputError(f"{self.path} was not written: there was no frame to put into it.")
        try:
            if self._target.exists():
                _check_replaceable(self.path, self._target)
                shutil.rmtree(self._target)
            os.replace(self._temporary, self._target)
            self._cleanup.detach()
        except OSError as error:
            self.abort()
            raise write_error(self.path, error) from error
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Give up: nothing of this writer stays on the disk."""
        self._cleanup()


def open_writer(
    path: str | Path,
    size: tuple[int, int],
    fps: float | Fraction,
    *,
    audio_from: str | Path | None = None,
    audio_start: float = 0.0,
    metadata: Mapping[str, str] | None = None,
) -> VideoWriter | FramesWriter:
    """The writer a path asks for: a folder (there already, or a name that ends in / or has no ending) takes PNG frames,
    a name with a video ending a video. Arguments as in `VideoWriter`; frames have no sound."""
    if names_a_folder(path):
        return FramesWriter(path, metadata=metadata)
    return VideoWriter(path, size, fps, audio_from=audio_from, audio_start=audio_start, metadata=metadata)


def names_a_folder(path: str | Path) -> bool:
    """Whether `open_writer` writes a folder of frames there; if not, it is a video.

    Raises:
        InputError: neither; the ending is none of `VIDEO_ENDINGS`.
    """
    if Path(path).is_dir() or str(path).endswith(("/", os.sep)) or not Path(path).suffix:
        return True
    _check_video_ending(Path(path))
    return False


_MARK = {"Software": "headwarp"}
_MUXER = {".m4v": "mp4", ".mkv": "matroska"}


_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # XMP specification, part 3, 1.1.4 (ISO base media)


def _xmp_box(packet: bytes) -> bytes:
    """The `uuid` box of an XMP packet, which stands beside the other boxes of a file."""
    return (24 + len(packet)).to_bytes(4, "big") + b"uuid" + _XMP_BOX + packet


def _check_video_ending(path: Path) -> None:
    if path.suffix.lower() not in VIDEO_ENDINGS:
        ending = path.suffix or "nothing"
        raise InputError(
            f"Cannot write {path}: videos end in {', '.join(VIDEO_ENDINGS)}, not in {ending}; "
            "a name that ends in / is a folder of PNG frames."
        )


def _codec(path: Path, suffix: str) -> tuple[str, dict[str, str]]:
    """The encoder and its options."""
    name, options = {".webm": ("libvpx-vp9", _VP9), ".gif": ("gif", {})}.get(suffix, ("libx264", _H264))
    if name not in av.codecs_available:
        raise InputError(
            f"Cannot write {path}: this PyAV has no {name} encoder; "
            "install PyAV from PyPI (`pip install av`), or write a folder of frames."
        )
    return name, options


def _palette_graph(width: int, height: int, tick: Fraction) -> Graph:
    """rgb24 frames in, pal8 frames out, each with its own best 256 colours: streams, unlike one palette for all."""
    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=tick)
    split = graph.add("split")
    generate = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(generate, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _check_replaceable(path: Path, target: Path) -> None:
    if not target.is_dir():
        raise InputError(f"Cannot write frames to {path}: that is a file; name a folder.")
    if not os.access(target, os.W_OK):
        raise InputError(
            f"Cannot write frames to {path}: there is no permission to write there; choose another folder."
        )
    names = sorted(os.listdir(target))
    foreign = [name for name in names if not re.fullmatch(r"\d{7}\.png", name)]
    if names and not foreign and not _is_ours(target / names[0]):
        foreign = names
    if foreign:
        raise InputError(
            f"Cannot write frames to {path}: it holds other files ({foreign[0]}); name a new folder, "
            f"or a video file such as {path / 'result.mp4'}."
        )


def _is_ours(frame: Path) -> bool:
    try:
        with Image.open(frame) as image:
            return image.info.get("Software") == _MARK["Software"]
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
