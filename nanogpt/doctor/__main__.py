"""Is everything well here?  python -m nanogpt.doctor  (see --help)"""

from conf.door import enter
from nanogpt.config import DoctorConfig


def main(config: DoctorConfig) -> int:
    """Check, and show what was found."""
    if config.gpu:
        from nanogpt.gpu_check.run import check_gpu  # torch: not for --help

        return check_gpu(config)
    from nanogpt.doctor.examination import examination

    return examination(config)


if __name__ == "__main__":
    enter("doctor", DoctorConfig, main)
