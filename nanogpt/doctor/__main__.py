"""Is everything well here?  python -m nanogpt.doctor  (see --help)"""

from conf.door import enter
from nanogpt.config import DoctorConfig


def main(config: DoctorConfig) -> int:
    """Check, and show what was found."""
    from nanogpt.doctor.examination import examination  # torch: not for --help

    return examination(config)


if __name__ == "__main__":
    enter("doctor", DoctorConfig, main)
