"""The suite runs a process a core, so programs take one thread unless a test asks for more
(`test_threads.py` does): two threads in each of two processes on two cores wait for each other.

Every pass runs, also where an earlier run compiled the same graph: tests change passes in a running
process. `test_known_programs.py` holds what finding programs by their graphs does.
"""

from __future__ import annotations

import os

os.environ.setdefault("STATICGRAD_NUM_THREADS", "1")
os.environ.setdefault("STATICGRAD_CACHE", "objects")
