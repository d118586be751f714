"""The command line: `headwarp COMMAND --help`.

Each command is a dataclass (its fields are the flags) with a `run` that calls the library. Heavy imports stay inside
`run`, so that `--help` answers at once.

Exit codes: 0 done, 1 something broke, 2 bad input or bad usage, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from ..fitting.options import FitOptions
from .convert import Convert
from .depth import Depth
from .evaluate import Compare, Evaluate
from .export import Export
from .options import AnimateOptions
from .synth import Synth
from .train import Train
from .unsup3d import Unsup3dCommand
from .web.command import App
from .webcam import Webcam

if TYPE_CHECKING:
    from .animator import Animator
    from .output import Picture

Source = Annotated[Path, arg(aliases=["-s"], help="Portrait, video to be re-animated, or a folder of them.")]
Portrait = Annotated[Path, arg(aliases=["-s"], help="Picture of a face.")]
Driving = Annotated[
    Path,
    arg(aliases=["-d"], help="Video, folder of frames, picture, track (.safetensors) or ARKit table (.csv)."),
]
Output = Annotated[Path, arg(aliases=["-o"])]
OutputOrFolder = Annotated[str, arg(aliases=["-o"], metavar="PATH")]  # a Path would lose the closing slash
Assignments = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, arg(metavar="NAME=VALUE ...")]


def _pair(text: str, flag: str) -> tuple[float, float]:
    from ..media.errors import InputError

    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{flag} takes two numbers with a comma between them, as in {flag} 10,0; got '{text}'."
        ) from None
    return first, second


def _assignments(given: tuple[tuple[str, ...], ...], flag: str) -> dict[str, float]:
    from ..media.errors import InputError

    found = {}
    for item in (item for items in given for item in items):
        name, _, value = item.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError(
                f"{flag} takes NAME=VALUE with a number, as in {flag} mouthSmileLeft=0.8; got '{item}'."
            ) from None
    return found


def _print_notes(problems: list[str]) -> None:
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Animate(AnimateOptions):
    """Make the face of a portrait follow a driving video.

    Both faces are found, cropped and fitted by themselves; the result is pasted back into the whole picture and keeps
    the driving clip's frame times and audio. With a folder of portraits, or of clips, every pair is made; results that
    are there are kept, and index.html shows them all.
    """

    source: Source
    driving: Driving
    output: OutputOrFolder
    """.mp4, .mov, .mkv, .webm or .gif; a folder (existing, or ending in /) gets PNG frames."""

    def run(self) -> None:
        from .animate import animate
        from .batch import animate_all, is_batch

        if is_batch(self.source, self.driving):
            folder = Path(self.output)
            results = animate_all(self.source, self.driving, folder, self, progress=True)
            for result in results:
                _print_notes([f"{result.pair.name}: {problem}" for problem in result.problems])
            print(folder / "index.html")
            if any(result.file is None for result in results):
                raise SystemExit(1)
            return
        done = animate(self.source, self.driving, self.output, self, progress=True)
        _print_notes(done.problems)
        for path in done.files:
            print(path)


@dataclass
class _Still:
    """What the commands for single pictures share."""

    source: Portrait
    output: OutputOrFolder
    """A picture: .png, .jpg, .webp, .bmp or .tif."""
    model: str = "geometric"
    """What moves the portrait: geometric (no learned weights), refined (the same, and a small network of the package
    improves it), pwm (a network of the package makes the picture), or the file of a pwm or refiner model."""
    crop_only: bool = False
    """Write the face crop instead of the whole picture."""
    no_crop: bool = False
    """The source is a face crop already."""
    size: int = 512
    """Pixels of the square that the motion is computed in, 128 to 1024; --crop-only results have this size."""
    max_side: int = 8192
    """Larger sources are reduced to this longer side."""
    source_face: int = 0
    """Which face, 0 = largest."""
    provenance: bool = True
    """Say inside the file that it is AI-generated; --no-provenance leaves the note out."""

    def _animator(self) -> Animator:
        from ..media.errors import InputError
        from ..media.files import protect
        from ..media.image import check_picture_ending
        from .animator import Animator

        check_picture_ending(self.output)
        protect([self.source], self.output)
        if self.max_side < 64:
            raise InputError(f"The longer side must be at least 64 pixels, got {self.max_side}.")
        animator = Animator(
            self.source,
            size=self.size,
            crop=not self.no_crop,
            face=self.source_face,
            max_side=self.max_side,
            model=self.model,
        )
        _print_notes(animator.problems)
        return animator

    def _save(self, picture: Picture) -> None:
        from ..media.image import save_image
        from .provenance import marks, sign

        save_image(self.output, picture, metadata=marks(self.provenance))
        if self.provenance:
            _print_notes(sign([Path(self.output)]))
        print(self.output)


@dataclass
class Edit(_Still):
    """Change pose, expression, jaw, gaze or face shape of a portrait, or of every frame of a video.

    All values are relative to the face as it is (see --replace). A video keeps its frame times and its sound;
    --keyframes also makes a video of a portrait.
    """

    source: Source
    output: OutputOrFolder
    """A picture; of a video source or with --keyframes a video, or a folder for PNG frames."""
    yaw: float | None = None
    """Degrees; positive turns the face to the person's left (right in the picture)."""
    pitch: float | None = None
    """Degrees; positive looks down."""
    roll: float | None = None
    """Degrees; positive tilts the head to the left of the picture."""
    jaw: float | None = None
    """Degrees that the jaw opens."""
    gaze: str | None = None
    """Degrees right and down in the picture, as in 10,0."""
    expression: Assignments = ()
    """ARKit face units and their weights, as in mouthSmileLeft=0.8 browInnerUp=0.5; docs/usage.md lists the names."""
    shape: Assignments = ()
    """Named controls of the head and values in [-1, 1], as in jaw-width=0.5; docs/usage.md lists the names."""
    replace: tuple[Literal["pose", "jaw", "gaze", "expression"], ...] | None = None
    """Parts that are set to what the sliders say instead of moved by it: pose jaw gaze expression."""
    edit: Path | None = None
    """A saved edit (.json, .yaml); sliders given besides take the place of its own."""
    save_edit: Path | None = None
    """Write the edit to a file for --edit."""
    keyframes: Path | None = None
    """Edits at moments of time (.yaml, .json), smoothly joined; docs/studio.md shows the file."""
    fps: float = 25.0
    """Frames per second of a video that --keyframes makes of a portrait."""
    smooth: float = 1.0
    """Smoothing of the head's own motion in a video, as in animate."""
    audio: bool = True
    """Keep the sound of a video; --no-audio leaves it out."""

    def run(self) -> None:
        flags = self._flags()  # before anything heavy is loaded: mistakes are told at once
        from dataclasses import replace

        from ..media.errors import InputError
        from ..media.files import IMAGE_SUFFIXES
        from .edits import Edit as Sliders
        from .edits import edit_video, is_moving, load_edit, load_keyframes

        if self.keyframes and (flags or self.edit):
            raise InputError("Give --keyframes or sliders, not both: the file says what the sliders do over time.")
        edit = load_edit(self.edit) if self.edit else Sliders()
        for name in ("expression", "shape"):
            if name in flags:
                flags[name] = {**getattr(edit, name), **flags[name]}
        edit = replace(edit, **flags).check()
        if self.save_edit:
            edit.save(self.save_edit)
        one_frame = self.source.suffix.lower() == ".gif" and Path(self.output).suffix.lower() in IMAGE_SUFFIXES
        if not self.keyframes and (one_frame or not is_moving(self.source)):
            self._save(self._animator().apply(edit, crop_only=self.crop_only))
            return
        done = edit_video(
            self.source,
            self.output,
            load_keyframes(self.keyframes) if self.keyframes else edit,
            model=self.model,
            size=self.size,
            max_side=self.max_side,
            crop=not self.no_crop,
            crop_only=self.crop_only,
            face=self.source_face,
            smooth=self.smooth,
            audio=self.audio,
            fps=self.fps,
            provenance=self.provenance,
            progress=True,
        )
        _print_notes(done.problems)
        print(self.output)

    def _flags(self) -> dict[str, Any]:
        """The sliders that were given."""
        flags: dict[str, Any] = {name: getattr(self, name) for name in ("yaw", "pitch", "roll", "jaw", "replace")}
        flags["gaze"] = None if self.gaze is None else _pair(self.gaze, "--gaze")
        for name in ("expression", "shape"):
            flags[name] = _assignments(getattr(self, name), f"--{name}") or None
        return {name: value for name, value in flags.items() if value is not None}


@dataclass
class Frontalize(_Still):
    """Turn the face of a portrait to the camera, as far as one picture can show it."""

    def run(self) -> None:
        self._save(self._animator().frontalize(crop_only=self.crop_only))


@dataclass
class Fit:
    """Fit the head to pictures and videos.

    Single files become tracks, NAME.safetensors. Folders (and tables like vox-metadata.csv) become data sets: a folder
    for each clip with clip.mp4 and clip.safetensors, index.parquet, and failures.csv with what could not be fitted.
    Running the command again goes on where it stopped.
    """

    inputs: Annotated[tuple[Path, ...], Positional]
    """Pictures, videos, folders of frames, folders of those, or a vox-metadata.csv."""
    output: Output
    """Folder for the results."""
    options: Annotated[FitOptions, arg(name="")] = field(default_factory=FitOptions)

    def run(self) -> None:
        from ..fitting.fit_videos import fit_files

        if not fit_files(self.inputs, self.output, self.options):
            raise SystemExit(1)


@dataclass
class ConvertTrack:
    """Convert a face track to the file of another program, or back.

    Reads and writes: deca, emoca, smirk (.pkl, .mat, .npy), vhap (.npz), frame (folder of metrical-tracker), nerf
    (folder with transforms.json), arkit-csv. Only writes: glb (animated, for Blender), obj, ply (folders of meshes).
    One side is a track (.safetensors).
    """

    source: Annotated[Path, Positional]
    """What to convert."""
    target: Annotated[Path, Positional]
    """File or folder to write."""
    kind: str | None = None
    """The format of the side that is no track; by its name if absent."""
    head: str | None = None
    """Head model of the numbers: open, flame, or a file. By default the open head for its tracks, else flame."""
    image_size: tuple[int, int] | None = None
    """Height and width of the pictures, for files that do not say."""
    fps: float = 25.0
    """Frames per second, for files that do not say."""

    def run(self) -> None:
        from ..fitting.formats import convert

        convert(self.source, self.target, kind=self.kind, head=self.head, size=self.image_size, fps=self.fps)
        print(self.target)


@dataclass
class Bench:
    """Measure speed on this machine, as ratios against a peer in the same run."""

    what: Annotated[
        Literal["raster", "warp", "fit", "dataset", "animate", "fidelity", "pwm", "dagan", "g3fa", "unsup3d", "scale"],
        Positional,
    ]
    """raster, warp: the kernels. fit, dataset, animate: whole stages. fidelity: does the result do what was asked?
    pwm, dagan, g3fa, unsup3d, scale: speed of the networks, and what small trainings of them reach."""
    real: Path | None = None
    """Folder with `portraits/` and `clips/` of real footage; the examples of the package if absent."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder for the numbers (.json) and contact sheets."""
    full: bool = False
    """fit: 200 synthetic heads and 20 clips instead of a few."""
    cache: Path | None = None
    """fit: a folder that keeps the synthetic pictures for the next time."""

    def run(self) -> None:
        import importlib

        from ..media.errors import InputError

        more = {"full": self.full, "cache": self.cache} if self.what == "fit" else {}
        if not more and (self.full or self.cache):
            raise InputError("--full and --cache are options of `headwarp bench fit`.")
        benchmark = importlib.import_module(f"..benchmarks.{self.what}", __package__)
        benchmark.main(real=self.real, output=self.output, **more)


@dataclass
class Doctor:
    """Say what is installed and what works, for yourself and for bug reports."""

    def run(self) -> None:
        from .doctor import report

        if not report():
            raise SystemExit(1)


@dataclass
class Models:
    """List the models of the package, checked by hash, and those a user may add: what for, licence, size, where."""

    def run(self) -> None:
        from .catalogue import report

        if not report():
            raise SystemExit(1)


@dataclass
class Demo:
    """Animate a public-domain photograph with the example clip; the fastest way to see that everything works."""

    output: Output = Path("out/demo")
    """Folder for the video and the contact sheet."""

    def run(self) -> None:
        from .demo import demo

        demo(self.output)


COMMANDS: dict[str, Callable[..., Any]] = {
    "animate": Animate,
    "edit": Edit,
    "frontalize": Frontalize,
    "app": App,
    "webcam": Webcam,
    "fit": Fit,
    "convert-track": ConvertTrack,
    "convert": Convert,
    "export": Export,
    "synth": Synth,
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "depth": Depth,
    "unsup3d": Unsup3dCommand,
    "demo": Demo,
    "models": Models,
    "doctor": Doctor,
    "bench": Bench,
}


DEMO_FLAGS = {
    "--source_image": ("--source",),
    "--driving_video": ("--driving",),
    "--result_video": ("--output",),
    "--find_best_frame": ("--rest", "best"),
    "--best_frame": ("--rest",),
    "--relative": ("--motion", "relative"),
    "--cpu": (),
}
"""Flags of the demos of FOMM and DaGAN -> those of `headwarp animate`."""


def _unread() -> SystemExit:
    """The end when nobody reads what is printed any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may the last flush complain
    return SystemExit(0)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `headwarp` command."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["animate"]:
        given = [part for flag in given for part in DEMO_FLAGS.get(flag, (flag,))]
    # Between two parallel loops torch's threads wait by spinning, a millisecond by default, on the cores that our
    # kernels want. Ten times shorter serves both (docs/kernels.md). Read when torch is loaded; the user's word counts.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="headwarp",
            description="One-shot face animation driven by explicit 3D geometry.",
            args=given,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except BrokenPipeError:  # `headwarp --help | head`
        raise _unread() from None
    # A polite kill cleans up as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command.run()
    except BrokenPipeError:  # `headwarp models | head`
        raise _unread() from None
    except KeyboardInterrupt:
        print("\nInterrupted; nothing half-written was left behind.", file=sys.stderr)
        raise SystemExit(130) from None
    except ImportError as error:
        if "libGL" not in str(error):
            raise
        print(f"headwarp: {error}. Run `headwarp doctor` for the way out.", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        from ..media.errors import InputError

        if not isinstance(error, InputError | FileNotFoundError):
            raise
        print(f"headwarp: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
