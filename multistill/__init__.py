"""multistill: search, distil and evaluate speech-emotion students on Ray and MLflow.

Importing the package does no work and imports no heavy library; `multistill.cli` is the
command line, `multistill.pipeline.runner` the same from Python, and `multistill.Predictor` a
trained model that predicts recordings.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from multistill.inference.clip import Input
    from multistill.inference.predictor import Prediction, Predictor

    __version__: str
    __all__ = ["Input", "Prediction", "Predictor", "__version__"]
else:

    def __getattr__(name):
        # On first use: importing importlib.metadata takes 20 times as long as this package, and
        # torch 1,000 times.
        if name == "__version__":
            from multistill.provenance import version

            return version()
        if name in ("Input", "Prediction", "Predictor"):
            from multistill.inference import predictor

            return getattr(predictor, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
