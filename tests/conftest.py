"""Four virtual CPU devices, and no silent rank promotion, in every test."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=4'
)

import jax  # after the flags, which it reads when it starts

jax.config.update('jax_numpy_rank_promotion', 'raise')
