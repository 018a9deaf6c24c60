"""A trained model for other programs:  python -m nanogpt.export run=runs/… format=hf  (see --help)"""

from conf.door import enter
from nanogpt.config import ExportConfig


def main(config: ExportConfig) -> int:
    """Write the folder and say where it is."""
    from nanogpt.exporting import export

    return export(config)


if __name__ == "__main__":
    enter("export", ExportConfig, main)
