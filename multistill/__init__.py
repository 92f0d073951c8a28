"""multistill: search, distil and evaluate speech-emotion students on Ray and MLflow.

Importing the package does no work and pulls in no heavy library; `multistill.cli`
is the command line, `multistill.pipeline.runner` the same from Python.
"""

__version__ = "0.1.0"
