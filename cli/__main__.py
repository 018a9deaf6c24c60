"""`python -m cli`: the command `nanogpt`, also where the project is not installed."""

from cli.commands import main

if __name__ == "__main__":
    main()
