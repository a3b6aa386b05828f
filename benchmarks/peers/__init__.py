"""Ten posteriors, sampled by probdl and its peers, each as a user of that system would do it."""
