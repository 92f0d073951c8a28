"""A trained model behind HTTP: `multistill serve`, on Ray Serve with FastAPI."""
