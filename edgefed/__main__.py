"""`python -m edgefed` is the `edgefed` command."""

from edgefed.cli.main import main

if __name__ == "__main__":
    main()
