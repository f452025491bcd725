"""python -m onestep_sr, and the command onestep-sr"""

import sys


def main() -> None:
    """Run the command line. Ctrl-C while its modules are imported ends it too."""
    try:
        from .sr_models.commands import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
