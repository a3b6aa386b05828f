"""Ten posteriors, sampled by probdl and its peers, each with idiomatic code for that system."""
