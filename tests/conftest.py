"""One thread for each test process: `make test` runs one process per core, and threads that wait
for each other on a busy core cost more than they gain on models this small."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
