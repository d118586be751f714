"""Face tracks from and to the files of other programs.

    track = import_track("tracked_flame_params_30.npz", head)
    export_track(track, "out.glb", head)

| kind | file | who reads or writes it |
|---|---|---|
| deca, emoca, smirk | .pkl, .mat, .npy with a dictionary of codes | regressors of FLAME |
| vhap | .npz (tracked_flame_params) | VHAP, GaussianAvatars |
| frame | folder of .frame | metrical-tracker, INSTA |
| nerf | folder with transforms.json and flame_param/ | NeRF and splatting code that follows VHAP's export |
| obj, ply | folder of one mesh a frame (only written) | anything |
| glb | animated mesh with morph targets (only written) | Blender, Unity, three.js |
| arkit-csv | .csv | Live Link Face, Unreal, Maya |

One file per format; each says what of a track it keeps.
"""

from __future__ import annotations

from pathlib import Path

from ...geom.head import HeadModel, load_head
from ...geom.track import FaceTrack
from ...media.errors import InputError
from ...media.files import atomic_write
from . import arkit_csv, codes, frame, glb, meshes, nerf, vhap
from .common import Known

READ = ("deca", "emoca", "smirk", "vhap", "frame", "nerf", "arkit-csv")
WRITE = (*READ, "obj", "ply", "glb")
_UNKNOWN = Known()


def kind_of(path: Path | str, *, writing: bool = False) -> str:
    """The kind of a file by its name.

    Raises:
        InputError: the name does not tell.
    """
    path = Path(path)
    by_name = {"transforms.json": "nerf"}
    by_ending = {".npz": "vhap", ".csv": "arkit-csv", ".glb": "glb", ".pkl": "deca", ".mat": "deca", ".npy": "deca"}
    if path.name in by_name:
        return by_name[path.name]
    if path.suffix.lower() in by_ending:
        return by_ending[path.suffix.lower()]
    if path.suffix == ".frame" or (path.is_dir() and any(path.glob("*.frame"))):
        return "frame"
    if (path / "transforms.json").is_file():
        return "nerf"
    kinds = ", ".join(WRITE if writing else READ)
    raise InputError(f"The name {path.name} does not tell the format; give --kind, one of {kinds}.")


def import_track(path: Path | str, head: HeadModel, *, kind: str | None = None, known: Known = _UNKNOWN) -> FaceTrack:
    """The track in a file of another program.

    Coefficients are padded with zeros, or cut, to what the head has: the first 100 and 50 of FLAME's 300 and 100 are
    the same ones. Landmarks and face units that the file does not hold are zeros.

    Args:
        path: file or folder.
        head: the model its numbers belong to: the FLAME of the edition that the other program used.
        kind: one of `READ`; by the name if None.
        known: what the file may not say.
    Raises:
        InputError: no such file, not of that kind, or damaged. Pickles are read without running anything in them.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    kind = kind or kind_of(path)
    try:
        match kind:
            case "deca" | "emoca" | "smirk":
                return codes.read(path, head, known)
            case "vhap":
                return vhap.read(path, head, known)
            case "frame":
                return frame.read(path, head, known)
            case "nerf":
                return nerf.read(path, head, known)
            case "arkit-csv":
                return arkit_csv.read(path, head, known)
    except (ValueError, KeyError, OSError, IndexError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as {kind} ({error}).") from error
    raise InputError(f"'{kind}' is no format that is read; there are {', '.join(READ)}.")


def export_track(track: FaceTrack, path: Path | str, head: HeadModel, *, kind: str | None = None) -> None:
    """Write a track for another program.

    Args:
        track: what.
        path: file or folder, see the table of the module.
        head: the track's own.
        kind: one of `WRITE`; by the name if None.
    Raises:
        InputError: unknown kind, a head of another name, or codes of FLAME asked of a head that is not FLAME.
    """
    track.check(head)
    path = Path(path)
    kind = kind or kind_of(path, writing=True)
    if kind in ("deca", "emoca", "smirk", "vhap", "frame") and track.head_name == "open":
        raise InputError(
            f"{kind} files hold FLAME's coefficients, and this track is of the open head, whose numbers mean something "
            "else. Fit with --head flame, or export glb, obj, ply, nerf or arkit-csv."
        )
    match kind:
        case "deca" | "emoca" | "smirk":
            codes.write(track, path, head, kind)
        case "vhap":
            vhap.write(track, path)
        case "frame":
            frame.write(track, path, head)
        case "nerf":
            nerf.write(track, path)
        case "arkit-csv":
            arkit_csv.write(track, path)
        case "obj" | "ply":
            meshes.write(track, path, head, kind)
        case "glb":
            glb.write(track, path, head)
        case _:
            raise InputError(f"'{kind}' is no format that is written; there are {', '.join(WRITE)}.")


def convert(
    source: Path | str,
    target: Path | str,
    *,
    kind: str | None = None,
    head: str | None = None,
    size: tuple[int, int] | None = None,
    fps: float = 25.0,
) -> None:
    """Convert between a track file and another program's.

    Args:
        source, target: exactly one of them is a track (.safetensors), or both are not, which goes through one.
        kind: of the side that is no track (of the target if neither is); by its name if None.
        head: name or path; None: the open head for its own tracks and for ARKit tables, else "flame".
        size, fps: see `Known`.
    Raises:
        InputError: see `import_track` and `export_track`; or the head is missing.
    """
    source, target = Path(source), Path(target)
    try:
        if source.suffix == ".safetensors":
            track = FaceTrack.load(source)
            model = load_head(head or ("open" if track.head_name == "open" else "flame"))
        else:
            found = kind if kind and target.suffix == ".safetensors" else kind_of(source)
            model = load_head(head or ("open" if found == "arkit-csv" else "flame"))
            track = import_track(source, model, kind=found, known=Known(fps, size))
        if target.suffix == ".safetensors":
            with atomic_write(target) as temporary:
                track.save(temporary)
        else:
            export_track(track, target, model, kind=kind or kind_of(target, writing=True))
    except (FileNotFoundError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error
