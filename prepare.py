"""Tokenize a data set before training on it:  python prepare.py data=openwebtext  (see --help)"""

from cli.commands import run_command

if __name__ == "__main__":
    run_command("prepare")
