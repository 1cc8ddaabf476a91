"""Conversion of trained networks into packed ones, and the proof that both answer alike."""

from bnn.converter.convert import convert as convert
from bnn.converter.convert import explain as explain
from bnn.converter.convert_step import convert_step as convert_step
from bnn.converter.errors import ConversionError as ConversionError
from bnn.converter.explain import Explanation as Explanation
from bnn.converter.graph.builder import Builder as Builder
from bnn.converter.graph.values import Value as Value
from bnn.converter.parity.check import ParityReport as ParityReport
from bnn.converter.parity.check import check_parity as check_parity
from bnn.converter.registry import register_rule as register_rule
