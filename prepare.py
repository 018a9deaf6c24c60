"""Tokenise a data set before training on it:  python prepare.py data=openwebtext  (see --help)"""

from conf.door import enter
from nanogpt.config import PrepareConfig


def main(config: PrepareConfig) -> int:
    """Prepare, unless it is done already, and say what there is."""
    from nanogpt.data.prepare import prepare

    dataset = prepare(config.data, config.overwrite)
    print(f"{dataset.folder}\n{dataset.description}\nfingerprint {dataset.fingerprint}")
    for note in dataset.notes:
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    enter("prepare", PrepareConfig, main)
