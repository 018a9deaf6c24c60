"""What Hydra makes of a choice of files takes 0.1 s and doesn't change: the tests remember it."""

from functools import cache
from typing import Any

from omegaconf import DictConfig

from cli.compose import Composer, register

Made = tuple[DictConfig, dict[str, list[dict[str, Any]]]]


class Remembering(Composer):
    """A Composer that keeps what Hydra made of each choice of files."""

    made: dict[tuple[str, ...], Made] = {}  # noqa: RUF012
    plain_made: dict[tuple[str, ...], dict[str, Any] | None] = {}  # noqa: RUF012

    def base(self, files: tuple[str, ...]) -> DictConfig:
        key = (self.door, *files)
        if key not in self.made:
            before, self.found = self.found, {prefix: [] for prefix in self.found}
            try:
                self.made[key] = super().base(files), self.found
            finally:
                self.found = before
        self.composed[files], found = self.made[key]
        for prefix, plain in found.items():
            self.found[prefix] += [one for one in plain if one not in self.found[prefix]]
        return self.composed[files]

    def constants(self, files: tuple[str, ...]) -> dict[str, Any] | None:
        key = (self.door, *files)
        if key not in self.plain_made:
            self.plain_made[key] = super().constants(files)
        return self.plain_made[key]


register_once = cache(register)
