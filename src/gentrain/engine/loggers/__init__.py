"""Where the numbers and pictures of a run go: a CSV file always, Weights & Biases or TensorBoard on request.

The keys are the same everywhere: ``loss/<player>/<term>``, ``score/real``, ``score/fake``, ``grad_norm/<player>``,
``metric/<name>``, ``samples/fixed``, ``health/<sign>``, ``speed/images_per_second``. The x-axes are iterations and
images seen, never optimiser steps.
"""

from gentrain.engine.loggers.base import FINISHED, Logger
from gentrain.engine.loggers.metrics_csv import MetricsCsv
from gentrain.engine.loggers.tensorboard import TensorBoard
from gentrain.engine.loggers.wandb import Wandb

__all__ = ["FINISHED", "Logger", "MetricsCsv", "TensorBoard", "Wandb"]
