"""Train a GPT:  python train.py model=gpt2_medium data=openwebtext  (see --help)"""

from cli.commands import run_command

if __name__ == "__main__":
    run_command("train")
