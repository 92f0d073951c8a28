"""Running trained models: recordings to predictions, outputs over a store, ensembles, latency."""
