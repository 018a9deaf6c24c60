"""`python -m experiments COMMAND …`: the commands about studies, runs and sizes; `nanogpt` has all commands."""

from cli.commands import run_subcommand

COMMANDS = ("report", "compare", "next", "list", "watch", "gc", "sizing", "scaling", "coordinates")

if __name__ == "__main__":
    run_subcommand("python -m experiments", COMMANDS)
