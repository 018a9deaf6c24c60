"""Measure training and generation on this machine:  python bench.py experiment=shakespeare_char_cpu  (see --help)"""

from cli.commands import run_command

if __name__ == "__main__":
    run_command("bench")
