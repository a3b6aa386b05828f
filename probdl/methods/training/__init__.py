"""What stochastic training shares: the loop, optimizers, minibatches, checkpoints."""
