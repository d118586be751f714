"""The sound of one clip carried over to another, in time with the pictures.

Compressed sound is copied packet by packet where the new container takes it, and otherwise encoded again (AAC, Opus in
WebM). Either way every packet keeps its exact time relative to the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer

from .container import audio_stream, fraction, open_input, origin

# What players of each container really play, not all that FFmpeg would write.
_COPIED = {
    ".mp4": {"aac", "mp3", "ac3", "eac3", "alac"},
    ".m4v": {"aac", "ac3"},
    ".mov": {"aac", "mp3", "ac3", "alac", "pcm_s16le", "pcm_s24le"},
    ".mkv": {"aac", "mp3", "ac3", "eac3", "flac", "opus", "vorbis", "pcm_s16le", "pcm_s24le"},
    ".webm": {"opus", "vorbis"},
}


class AudioCopy:
    """Feeds the sound of `source` into `output` up to a given time, whenever asked.

    Output time 0 is `start` seconds into the source clip (in its frames' times). Whole packets are kept, so sound may
    begin and end up to one packet (about 20 ms) off the pictures' ends; it is never shifted.
    """

    def __init__(self, source: str | Path, output: OutputContainer, suffix: str, start: float) -> None:
        self._container = open_input(source)
        stream = audio_stream(self._container)
        self._packets: Iterator[av.Packet] = iter(())
        self._waiting: av.Packet | None = None
        self._output = output
        if stream is None:
            return
        self._zero = origin(self._container) + Fraction(start).limit_denominator(1_000_000)
        if stream.codec_context.codec.canonical_name in _COPIED[suffix]:
            self._stream = output.add_stream_from_template(stream)
            self._packets = self._copied(stream)
        else:
            self._stream = self._encoder(stream, suffix)
            self._packets = self._encoded(stream)

    def feed(self, until: float) -> None:
        """Write the packets that begin before output time `until` (seconds)."""
        while True:
            packet = self._waiting or next(self._packets, None)
            self._waiting = None
            if packet is None:
                return
            if _seconds(packet) >= until:
                self._waiting = packet
                return
            packet.stream = self._stream
            self._output.mux(packet)

    def close(self) -> None:
        self._container.close()

    def _copied(self, stream: av.AudioStream) -> Iterator[av.Packet]:
        before: av.Packet | None = None
        for packet in self._demuxed(stream):
            packet.pts = packet.dts = round((_seconds(packet) - self._zero) / _tick(packet))
            if packet.pts < 0:
                before = packet
                continue
            # A decoder needs the packet before the first one heard: it goes in with a negative time, which MP4 and
            # MOV hide by an edit list. Matroska would shift all streams instead, so there sound starts one packet late.
            if before is not None and self._output.format.name in ("mp4", "mov"):
                yield before
            before = None
            yield packet

    def _encoded(self, stream: av.AudioStream) -> Iterator[av.Packet]:
        assert isinstance(self._stream, av.AudioStream)
        context = self._stream.codec_context
        resampler = av.AudioResampler(context.format, context.layout, context.rate, context.frame_size or None)
        for packet in self._demuxed(stream):
            try:
                frames = stream.decode(packet)
            except av.error.FFmpegError:
                continue  # a damaged packet is a few milliseconds of silence
            for frame in frames:
                if frame.pts is not None and _seconds(frame) >= self._zero:
                    frame.pts = round((_seconds(frame) - self._zero) / _tick(frame))
                    for ready in resampler.resample(frame):
                        yield from self._stream.encode(ready)
        for ready in resampler.resample(None):
            yield from self._stream.encode(ready)
        yield from self._stream.encode(None)

    def _demuxed(self, stream: av.AudioStream) -> Iterator[av.Packet]:
        try:
            for packet in self._container.demux(stream):
                if packet.pts is not None:  # the demuxer ends with an empty packet
                    yield packet
        except av.error.FFmpegError:
            return  # a truncated clip: its sound ends here

    def _encoder(self, stream: av.AudioStream, suffix: str) -> av.AudioStream:
        source = stream.codec_context
        layout = "mono" if source.layout.nb_channels == 1 else "stereo"
        if suffix == ".webm":
            encoder = self._output.add_stream("libopus", rate=48000, options={"b": "128k"})
        else:
            encoder = self._output.add_stream("aac", rate=min(source.rate, 48000), options={"b": "192k"})
        encoder.codec_context.layout = layout
        return encoder


def _seconds(item: av.Packet | av.AudioFrame) -> Fraction:
    """Presentation time on the stream's own clock; only for items that have one."""
    assert item.pts is not None
    return item.pts * _tick(item)


def _tick(item: av.Packet | av.AudioFrame) -> Fraction:
    tick = fraction(item.time_base)
    assert tick is not None
    return tick
