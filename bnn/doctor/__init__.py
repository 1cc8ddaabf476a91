"""The doctor: what goes wrong inside a network with few bits while it trains, measured and named."""

from bnn.doctor.doctor import METRICS as METRICS
from bnn.doctor.doctor import Doctor as Doctor
from bnn.doctor.doctor import Record as Record
from bnn.doctor.doctor import mean_record as mean_record
from bnn.doctor.doctor import watched_layers as watched_layers
from bnn.doctor.findings import KINDS as KINDS
from bnn.doctor.findings import Finding as Finding
from bnn.doctor.findings import findings as findings
from bnn.doctor.report import records_of as records_of
from bnn.doctor.report import report as report
