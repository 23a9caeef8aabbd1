"""`python -m torchtrack.cli` is `torchtrack`."""

from torchtrack.cli import main

if __name__ == "__main__":
    main()
