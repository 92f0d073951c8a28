"""multistill: search, distil and evaluate speech-emotion students on Ray and MLflow.

Importing the package does no work and imports no heavy library; `multistill.cli` is the
command line, `multistill.pipeline.runner` the same from Python.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        # On first use: importing importlib.metadata takes 20 times as long as this package.
        if name == "__version__":
            from multistill.provenance import version

            return version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
