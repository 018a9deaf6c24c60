"""nanogpt-lab: train GPTs. README.md describes the tree. Nothing is imported here, so that every part loads alone."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent, unless a program configures logging
