"""Turn logits into tokens in JAX: exact, fast, jit-compiled, batched and vmappable."""

from sampling_jax import reference as reference
from sampling_jax._constraints import apply_logit_bias as apply_logit_bias
from sampling_jax._constraints import apply_min_length as apply_min_length
from sampling_jax._constraints import apply_token_bitmask as apply_token_bitmask
from sampling_jax._constraints import suppress_tokens as suppress_tokens
from sampling_jax._cutoffs import apply_epsilon_cutoff as apply_epsilon_cutoff
from sampling_jax._cutoffs import apply_eta_cutoff as apply_eta_cutoff
from sampling_jax._history import History as History
from sampling_jax._history import init_history as init_history
from sampling_jax._history import update_history as update_history
from sampling_jax._likelihood import log_kept_mass as log_kept_mass
from sampling_jax._likelihood import log_prob as log_prob
from sampling_jax._logprobs import Logprobs as Logprobs
from sampling_jax._logprobs import logprobs as logprobs
from sampling_jax._many import sample_n as sample_n
from sampling_jax._mirostat import mirostat as mirostat
from sampling_jax._params import SamplingParams as SamplingParams
from sampling_jax._penalties import apply_penalties as apply_penalties
from sampling_jax._process import apply_min_p as apply_min_p
from sampling_jax._process import apply_temperature as apply_temperature
from sampling_jax._process import apply_top_k as apply_top_k
from sampling_jax._process import apply_top_p as apply_top_p
from sampling_jax._process import process_logits as process_logits
from sampling_jax._repeats import apply_dry as apply_dry
from sampling_jax._repeats import apply_no_repeat_ngram as apply_no_repeat_ngram
from sampling_jax._sample import sample as sample
from sampling_jax._scored import sample_with_logprobs as sample_with_logprobs
from sampling_jax._sigma import apply_top_n_sigma as apply_top_n_sigma
from sampling_jax._speculative import Verified as Verified
from sampling_jax._speculative import speculative_verify as speculative_verify
from sampling_jax._typical import apply_typical_p as apply_typical_p
from sampling_jax._xtc import apply_xtc as apply_xtc

__version__ = "0.1.0"
