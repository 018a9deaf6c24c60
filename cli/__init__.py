"""The command line: words and YAML files -> checked, typed config.

Every command imports this package first; therefore it checks for an old Python and for missing packages.
"""

import sys
from importlib.util import find_spec

INSTALL = "pip installs it with nanogpt-lab; in a checkout `make setup` makes an environment that has it: .venv"

if sys.version_info < (3, 10):  # noqa: UP036 (the Python that runs may not be the one that was set up)
    print(f"error: {sys.executable} is Python {sys.version.split()[0]}; 3.10 or newer is needed", file=sys.stderr)
    sys.exit(5)
if find_spec("pydantic") is None:
    print(f"error: {sys.executable} has no 'pydantic'; {INSTALL}", file=sys.stderr)
    sys.exit(5)
