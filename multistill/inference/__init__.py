"""From trained models to outputs: predictions over a store, ensembles, latency."""
