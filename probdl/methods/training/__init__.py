"""Parts of stochastic training: the loop, optimizers, minibatches, checkpoints."""
