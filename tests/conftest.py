import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=4"
)

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

quiet = {"deadline": None, "print_blob": True}
hypothesis.settings.register_profile("default", max_examples=40, derandomize=True, **quiet)
hypothesis.settings.register_profile("explore", max_examples=2000, **quiet)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="module")
def _no_programs_of_other_files():
    """Forget compiled programs: each holds mappings of memory, and a process has only so many."""
    yield
    jax.clear_caches()
