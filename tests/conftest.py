"""What all tests share: how hypothesis draws, and that it says from which seed.

Examples are not kept between runs and have no deadline, because a busy machine is no bug. A failure
prints its example and the `@reproduce_failure` line that brings it back.
"""

from hypothesis import settings

settings.register_profile("project", deadline=None, database=None, print_blob=True)
settings.load_profile("project")
