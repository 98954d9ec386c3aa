"""Pairs made on the fly: random anatomies seen through two random smooth deformations. No scan is needed."""

from train.generated.pairs import GeneratedPairs
from train.generated.template import Template, load_template

__all__ = ["GeneratedPairs", "Template", "load_template"]
