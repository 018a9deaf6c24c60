"""Measure training and generation on this machine:  python bench.py experiment=shakespeare_char_cpu  (see --help)"""

from conf.door import enter
from nanogpt.config import BenchConfig


def main(config: BenchConfig) -> int:
    """Measure and print tables."""
    from nanogpt.benchmark.report import bench

    return bench(config)


if __name__ == "__main__":
    enter("bench", BenchConfig, main)
