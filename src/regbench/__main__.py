"""`python -m regbench`, the same as `regbench`."""

from regbench.cli import main

if __name__ == "__main__":
    main()
