"""The steps that recipes are made of. Each module joins one package to the pipeline."""
