"""Sparse autoencoders, transcoders, crosscoders: train, sweep, evaluate, read features, report; read other tools'."""

from saes.codes import Codes as Codes
from saes.directions import directions as directions
from saes.evaluate import Evaluation as Evaluation
from saes.evaluate import evaluate as evaluate
from saes.examples import read_features as read_features
from saes.interop import load_sae as load_sae
from saes.report import write_report as write_report
from saes.sae import SAE as SAE
from saes.sae import SAEConfig as SAEConfig
from saes.sweep import Grid as Grid
from saes.sweep import sweep as sweep
from saes.tensor_rows import TensorRows as TensorRows
from saes.train import TrainConfig as TrainConfig
from saes.train import fit as fit
