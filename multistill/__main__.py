"""`python -m multistill`, the same as the `multistill` command."""

from multistill.cli import main

if __name__ == "__main__":
    main()
