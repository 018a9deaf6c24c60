"""`prepare.py`: tokenize a data set and print what was made."""

from nanogpt.config import PrepareConfig
from nanogpt.data.prepare import prepare


def prepare_data(config: PrepareConfig) -> int:
    """Prepare the data set unless that was done before. Returns 0. Raises LabError."""
    dataset = prepare(config.data, config.overwrite)
    print(f"{dataset.folder}\n{dataset.description}\nfingerprint {dataset.fingerprint}")
    for note in dataset.notes:
        print(f"note: {note}")
    return 0
