"""`python -m meanmode` is the command line `mms`, for launchers that start a module."""

from meanmode.sweeps.cli.main import main

if __name__ == "__main__":
    main()
