"""`python -m enrich.cli`, for launchers that start modules."""

from enrich.cli import main

if __name__ == "__main__":
    main()
