"""Show people the samples that they should decide about, and write down what they decide."""
