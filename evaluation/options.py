"""Names of the protocols; nothing heavy is imported here, so that --help answers at once."""

from __future__ import annotations

from typing import Literal

ProtocolName = Literal["reconstruction", "same-identity", "cross-identity", "scale", "yaw"]
