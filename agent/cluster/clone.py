"""Run the program that clones a repository under its old module name.

Pods of an older agent run `python3 -m agent.cluster.clone`. The agent and the image on a node may differ by one
release, so this module stays for one release after the program moved to `agent.cluster.in_pod.clone`.
"""

from __future__ import annotations

import sys

from agent.cluster.in_pod.clone import main

if __name__ == "__main__":
    sys.exit(main())
