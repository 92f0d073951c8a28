"""The code of an exported MLflow model, which MLflow copies beside it and runs to load it."""

from mlflow.models import set_model

from multistill.export.pyfunc import EmotionModel

set_model(EmotionModel())
