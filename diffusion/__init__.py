"""Rolling flow matching: times, loss, the sampler, given modalities, guidance, noise."""
