"""Schema of the JSON outputs as frozen dataclasses, used by the writers, the report and the group level.

Keys are defined only here. Only the standard library may be imported, so that the report and the group level load no
model.
"""

from bids_app.outputs.schema.log import FAILED, OK, RunOutcome, Summary
from bids_app.outputs.schema.model import (
    AdapterFacts,
    AttributionSidecar,
    EmbeddingsSidecar,
    HalfCorrelation,
    Halves,
    ModelSidecar,
    PredictionSidecar,
    PromisedInterval,
    PromisedLabels,
    Reliability,
    Uncertainty,
    View,
    Views,
)
from bids_app.outputs.schema.record import Record
from bids_app.outputs.schema.run import (
    BoldrefSidecar,
    BoldSidecar,
    DataDictionary,
    DistortionCorrection,
    MaskSidecar,
    MeasuredField,
    Parameters,
    QualitySidecar,
    Sidecar,
    T1wSidecar,
    T2starSidecar,
    TransformSidecar,
)
from bids_app.outputs.schema.verdict import LEVELS, PASS, REFUSE, WARN, CheckRecord, VerdictRecord

__all__ = [
    "FAILED",
    "LEVELS",
    "OK",
    "PASS",
    "REFUSE",
    "WARN",
    "AdapterFacts",
    "AttributionSidecar",
    "BoldSidecar",
    "BoldrefSidecar",
    "CheckRecord",
    "DataDictionary",
    "DistortionCorrection",
    "EmbeddingsSidecar",
    "HalfCorrelation",
    "Halves",
    "MaskSidecar",
    "MeasuredField",
    "ModelSidecar",
    "Parameters",
    "PredictionSidecar",
    "PromisedInterval",
    "PromisedLabels",
    "QualitySidecar",
    "Record",
    "Reliability",
    "RunOutcome",
    "Sidecar",
    "Summary",
    "T1wSidecar",
    "T2starSidecar",
    "TransformSidecar",
    "Uncertainty",
    "VerdictRecord",
    "View",
    "Views",
]
