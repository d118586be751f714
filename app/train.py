"""`headwarp train CONFIG [section.key=value ...]`: any method on any data, resumable."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass
class Train:
    """Train a method. Running the same command again goes on where it stopped.

    The run folder gets model.safetensors (for `--model` of the other commands), checkpoints, log.jsonl, TensorBoard's
    files and sheets of validation pictures. docs/training.md says what configurations hold.
    """

    config: Annotated[str, Positional]
    """A YAML file, or the name of a configuration of the package."""
    settings: Annotated[tuple[str, ...], Positional, arg(metavar="SECTION.KEY=VALUE ...")] = ()
    """Replace what the configuration says, as in train_params.batch_size=4 dataset_params.root_dir=data/vox."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Run folder; by default log/CONFIG DATE, or the newest unfinished one of the same configuration."""

    def run(self) -> None:
        try:
            from ..training.engine import Diverged, Stopped, train
        except ModuleNotFoundError as error:
            if error.name != "lightning_fabric":
                raise
            print('headwarp: training needs more packages: pip install "headwarp[train]".', file=sys.stderr)
            raise SystemExit(2) from None
        from ..training.config import read_config

        try:
            train(read_config(self.config, self.settings), self.output)
        except (Diverged, Stopped) as end:
            if os.environ.get("LOCAL_RANK", "0") == "0":  # one voice for all processes
                print(f"headwarp: {end}", file=sys.stderr)
            raise SystemExit(130 if isinstance(end, Stopped) else 1) from None
