import sys

from funnelrank.cli import main

sys.exit(main())
