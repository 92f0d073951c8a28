"""Distillation: losses and soft targets. Free of Ray and MLflow."""
