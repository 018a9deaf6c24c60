"""What Hydra makes of a choice of files takes 0.1 s and doesn't change: the tests remember it."""

from functools import cache
from typing import Any

from omegaconf import DictConfig

from cli.compose import Composer, register_schemas

Made = tuple[DictConfig, dict[str, list[dict[str, Any]]]]


class Remembering(Composer):
    """A Composer that keeps what Hydra made of each choice of files."""

    made: dict[tuple[str, ...], Made] = {}  # noqa: RUF012
    plain_made: dict[tuple[str, ...], dict[str, Any] | None] = {}  # noqa: RUF012

    def compose_files(self, files: tuple[str, ...]) -> DictConfig:
        key = (self.command, *files)
        if key not in self.made:
            before, self.sweep_keys_in_files = (
                self.sweep_keys_in_files,
                {prefix: [] for prefix in self.sweep_keys_in_files},
            )
            try:
                self.made[key] = super().compose_files(files), self.sweep_keys_in_files
            finally:
                self.sweep_keys_in_files = before
        self.composed_files[files], found = self.made[key]
        for prefix, plain in found.items():
            self.sweep_keys_in_files[prefix] += [one for one in plain if one not in self.sweep_keys_in_files[prefix]]
        return self.composed_files[files]

    def constant_values_of(self, files: tuple[str, ...]) -> dict[str, Any] | None:
        key = (self.command, *files)
        if key not in self.plain_made:
            self.plain_made[key] = super().constant_values_of(files)
        return self.plain_made[key]


register_once = cache(register_schemas)
