"""`headwarp app`: the studio's page, served on this machine."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class App:
    """Edit and animate in a browser: sliders, overlays, a 3D view, clips and webcam recordings, fits with their curves.

    The page is served on this machine only, and nothing leaves it. What is uploaded is deleted when its page is closed.
    """

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets everybody in the network use this machine."""
    port: int = 7860
    """0 takes a free one."""
    models: Path | None = None
    """A folder of model files (.safetensors) to choose from, besides geometric."""
    max_upload: int = 512
    """Megabytes of the largest file that is accepted."""
    browser: bool = True
    """Open the page; --no-browser only prints its address."""

    def run(self) -> None:
        from ...media.errors import InputError

        if importlib.util.find_spec("gradio") is None:
            raise InputError("The studio needs Gradio: pip install 'headwarp[app]'.")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port must be from 0 to 65535, got {self.port}.")
        if self.max_upload < 1:
            raise InputError(f"--max-upload must be at least 1 (megabyte), got {self.max_upload}.")
        if self.models is not None and not self.models.is_dir():
            raise InputError(f"--models must be a folder of model files, got {self.models}.")
        with tempfile.TemporaryDirectory(prefix="headwarp-app-", ignore_cleanup_errors=True) as work:
            os.environ |= {
                # Read when Gradio is imported: its uploads belong into our folder, and it must not call home.
                "GRADIO_TEMP_DIR": work,
                "GRADIO_ANALYTICS_ENABLED": "False",
                "HF_HUB_OFFLINE": "1",
            }
            from .page import serve

            if self.host not in LOOPBACK:
                print(f"note: everybody who reaches {self.host} can use this page.", file=sys.stderr)
            serve(self, Path(work))
