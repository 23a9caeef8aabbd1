"""The worker's process: python -m torchtrack.server --runs DIR [--index DIR | --dsn DSN] --socket PATH."""

from torchtrack.server.engine import beginning

if __name__ == "__main__":
    with beginning():
        from torchtrack.server.worker import main
    main()
