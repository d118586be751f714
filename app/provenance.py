"""What results say about themselves: that they are AI-generated, readable by people and by machines.

    marks()          texts for the file: a comment, and an XMP packet with IPTC's digital source type
    sign(files)      a C2PA manifest, where the user has configured a certificate

The source type is "compositeWithTrainedAlgorithmicMedia": a real photograph whose face was changed by models. It is
what platforms look for when they label pictures (IPTC NewsCodes, cv.iptc.org/newscodes/digitalsourcetype).

A certificate is configured by two environment variables with paths of PEM files: HEADWARP_C2PA_CERTIFICATE (the chain,
end entity first) and HEADWARP_C2PA_KEY (an EC P-256 key). It needs `pip install c2pa-python`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import __version__
from ..media.errors import InputError
from ..media.files import atomic_write, read_error
from ..media.image import XMP

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

_PACKET = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"
 xmp:CreatorTool="headwarp {__version__}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""

MARK: Mapping[str, str] = {"comment": "AI-generated: a portrait changed by headwarp", XMP: _PACKET}
"""Written into every file that the commands make, unless they are told not to."""

_SIGNABLE = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
}


def marks(wanted: bool = True) -> Mapping[str, str]:
    """Metadata for a result.

    Raises:
        InputError: results are to be signed and cannot be, see `sign`; told before there is work to lose.
    """
    if not wanted:
        return {}
    _credentials()
    return MARK


def sign(files: Sequence[Path]) -> list[str]:
    """Put a C2PA manifest into results, where a certificate is configured; the files are replaced as a whole.

    Returns:
        Sentences about files that cannot hold one (folders of frames, GIF, WebM, Matroska, BMP).
    Raises:
        InputError: the configuration is incomplete, c2pa-python is missing, or it refuses the certificate.
    """
    credentials = _credentials()
    if credentials is None:
        return []
    problems = []
    for file in files:
        kind = _SIGNABLE.get(file.suffix.lower())
        if kind is None or file.is_dir():
            problems.append(f"{file} got no C2PA manifest: only {', '.join(_SIGNABLE)} hold one here.")
        else:
            _sign(file, kind, *credentials)
    return problems


def _credentials() -> tuple[Path, Path] | None:
    """Files of certificate and key; None where none are configured."""
    certificate, key = (os.environ.get(f"HEADWARP_C2PA_{name}") for name in ("CERTIFICATE", "KEY"))
    if not certificate and not key:
        return None
    if not certificate or not key:
        raise InputError(
            "HEADWARP_C2PA_CERTIFICATE and HEADWARP_C2PA_KEY belong together: set both, or none for no C2PA manifest."
        )
    if importlib.util.find_spec("c2pa") is None:
        raise InputError("A C2PA certificate is configured, but not its library: pip install c2pa-python.")
    for path in (certificate, key):
        if fault := read_error(path):
            raise fault
    return Path(certificate), Path(key)


def _sign(file: Path, kind: str, certificate: Path, key: Path) -> None:
    try:
        import c2pa
    except ImportError:
        raise InputError(
            "A C2PA certificate is configured, but its library is missing: pip install c2pa-python."
        ) from None
    manifest = {
        "claim_generator_info": [{"name": "headwarp", "version": __version__}],
        "format": kind,
        "assertions": [
            {
                "label": "c2pa.actions",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
            }
        ],
    }
    try:
        info = c2pa.C2paSignerInfo(
            alg=b"es256", sign_cert=certificate.read_bytes(), private_key=key.read_bytes(), ta_url=None
        )
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(json.dumps(manifest)) as builder,
            atomic_write(file) as temporary,
            open(file, "rb") as before,
            open(temporary, "w+b") as after,
        ):
            builder.sign(signer, kind, before, after)
    except c2pa.C2paError as error:
        raise InputError(f"C2PA: {file} could not be signed with {certificate} ({error}).") from None
