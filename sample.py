"""Text from a trained model:  python sample.py run=runs/… prompt='def '  (see --help)"""

from conf.door import enter
from nanogpt.config import SampleConfig


def main(config: SampleConfig) -> int:
    """Draw and print."""
    from nanogpt.sampling import sample

    return sample(config)


if __name__ == "__main__":
    enter("sample", SampleConfig, main)
