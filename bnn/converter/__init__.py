"""Conversion of trained networks into packed ones, and the proof that both answer alike."""

from bnn.converter.convert import convert as convert
from bnn.converter.errors import ConversionError as ConversionError
from bnn.converter.parity import ParityReport as ParityReport
from bnn.converter.parity import check_parity as check_parity
