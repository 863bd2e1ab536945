"""SSLAM: self-supervised learning from audio mixtures, in JAX and Flax."""
