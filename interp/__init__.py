"""Hooked models, activation extraction and analysis. The names most notebooks need; the rest is imported by module."""

from interp.corpus import read_corpus as read_corpus
from interp.corpus import split as split
from interp.errors import InputError as InputError
from interp.extract import extract as extract
from interp.lens import Lens as Lens
from interp.model import HookedModel as HookedModel
from interp.sites import Point as Point
from interp.sites import Site as Site
from interp.store import ActivationStore as ActivationStore
from interp.tokenfile import TokenFile as TokenFile
from interp.tokenfile import tokenize as tokenize
