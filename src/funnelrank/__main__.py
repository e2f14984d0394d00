"""`funnelrank` and `python -m funnelrank`; a Ctrl-C before the command line is imported ends them quietly, too."""

import sys


def main() -> int:
    try:
        from funnelrank.cli import main as run
        return run()
    except KeyboardInterrupt:
        print("stopped; nothing was begun", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
