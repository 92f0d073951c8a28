"""Running trained models: outputs over a feature store, ensembles, latency."""
