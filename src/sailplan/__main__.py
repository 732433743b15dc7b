"""`python -m sailplan` is `sailplan`."""

from sailplan.cli.main import main

if __name__ == "__main__":
    main()
