"""Run the clone program under its old name.

Pods name `python3 -m agent.cluster.clone`. An agent and the image on its nodes may differ by one release, so this name
stays for one release after the move to `agent.cluster.in_pod`.
"""

from __future__ import annotations

import sys

from agent.cluster.in_pod.clone import main

if __name__ == "__main__":
    sys.exit(main())
