"""Every command with the config it takes."""

from typing import Any

from conf import reference

DOORS: dict[str, Any] = {door: kind for door, (_, kind) in reference.DOORS.items()}
