"""Run the command line as `python -m mnft` (what torchrun needs: `torchrun -m mnft train ...`)."""

from mnft.cli.app import main

if __name__ == "__main__":
    main()
