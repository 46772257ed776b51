"""Sparse autoencoders: train, evaluate, read features, report."""

from saes.codes import Codes as Codes
from saes.evaluate import Evaluation as Evaluation
from saes.evaluate import evaluate as evaluate
from saes.examples import read_features as read_features
from saes.report import write_report as write_report
from saes.sae import SAE as SAE
from saes.sae import SAEConfig as SAEConfig
from saes.train import TrainConfig as TrainConfig
from saes.train import fit as fit
