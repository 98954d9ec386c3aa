"""Pairs made on the fly: random anatomies seen through two random smooth deformations. No scan is needed."""

from train.generated.pairs import GeneratedPairs
from train.generated.population import ALIKE, POPULATIONS, VARIED, Population
from train.generated.template import Template, load_template

__all__ = ["ALIKE", "POPULATIONS", "VARIED", "GeneratedPairs", "Population", "Template", "load_template"]
