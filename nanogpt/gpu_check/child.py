"""`python -m nanogpt.gpu_check.child PART`: one part in this process. A config as JSON comes in, rows go out."""

import json
import sys
from contextlib import redirect_stdout

from nanogpt import schema
from nanogpt.config import DoctorConfig
from nanogpt.errors import LabError
from nanogpt.gpu_check.parts import list_parts


def main(name: str) -> int:
    """Do the part; an error that was foreseen is the last line."""
    config = schema.from_dict(DoctorConfig, json.load(sys.stdin))
    try:
        with redirect_stdout(sys.stderr):
            rows = list_parts()[name].call(config)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps([row.model_dump() for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
