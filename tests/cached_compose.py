"""What Hydra makes of a choice of files takes 0.1 s and doesn't change: the tests remember it."""

from functools import cache

from cli.compose import ComposedFiles, Composer, register_schemas


class Remembering(Composer):
    """A Composer that keeps what Hydra made of each choice of files."""

    made: dict[tuple[str, ...], ComposedFiles] = {}  # noqa: RUF012

    def load_files(self, files: tuple[str, ...]) -> ComposedFiles:
        key = (self.command, *files)
        if key not in self.made:
            self.made[key] = super().load_files(files)
        return self.made[key]


register_once = cache(register_schemas)
