"""`python -m launch COMMAND …`: the job commands; `nanogpt` has all commands."""

from cli.commands import run_subcommand

COMMANDS = ("submit", "status", "logs", "wait", "cancel", "retry", "resubmit")

if __name__ == "__main__":
    run_subcommand("python -m launch", COMMANDS)
