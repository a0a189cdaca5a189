"""What all tests share: how hypothesis draws, and which ports are theirs.

Examples are not kept between runs and have no deadline, because a busy machine is no bug. A failure
prints its example and the `@reproduce_failure` line that brings it back.

`scripts/test` has several workers, and a port that one of them has found free is open only when the
node is up that is to listen there. So that no other takes it meanwhile, each has a part of its own
of the ports that `free_ports` draws from.
"""

import os

from hypothesis import settings

from cluster.bench import ports

settings.register_profile("project", deadline=None, database=None, print_blob=True)
settings.load_profile("project")

if "PYTEST_XDIST_WORKER" in os.environ:
    _share = (ports._HIGHEST - ports._LOWEST) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    ports._LOWEST += _share * int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    ports._HIGHEST = ports._LOWEST + _share
