"""Evaluate a model:  python evaluate.py run=runs/… eval=hellaswag  (see --help)"""

from cli.commands import run_command

if __name__ == "__main__":
    run_command("evaluate")
