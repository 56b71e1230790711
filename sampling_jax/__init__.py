"""Turn logits into tokens in JAX: exact, fast, jit-compiled, batched and vmappable."""

from sampling_jax import reference as reference
from sampling_jax._process import apply_min_p as apply_min_p
from sampling_jax._process import apply_temperature as apply_temperature
from sampling_jax._process import apply_top_k as apply_top_k
from sampling_jax._process import apply_top_p as apply_top_p
from sampling_jax._process import process_logits as process_logits
from sampling_jax._sample import sample as sample

__version__ = "0.1.0"
