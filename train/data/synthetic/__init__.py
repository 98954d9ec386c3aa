"""Pairs generated on the fly: random anatomies under two random smooth deformations. No scan is needed."""

from train.data.synthetic.pairs import GeneratedPairs
from train.data.synthetic.population import ALIKE, POPULATIONS, VARIED, Population
from train.data.synthetic.template import Template, load_template

__all__ = ["ALIKE", "POPULATIONS", "VARIED", "GeneratedPairs", "Population", "Template", "load_template"]
