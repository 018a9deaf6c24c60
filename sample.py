"""Generate text:  python sample.py run=runs/… prompt='def '  (see --help)"""

from cli.commands import run_command

if __name__ == "__main__":
    run_command("sample")
