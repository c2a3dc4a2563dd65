"""The suite runs a process a core, so programs take one thread unless a test asks for more
(`test_threads.py` does): two threads in each of two processes on two cores wait for each other."""

from __future__ import annotations

import os

os.environ.setdefault("STATICGRAD_NUM_THREADS", "1")
