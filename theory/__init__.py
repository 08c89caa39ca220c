"""What is claimed: laws with machine-checked proofs, and the theory that predicts the collapse front."""

from theory.front import FrontPrediction, predict_front
from theory.law import Law, Premises
from theory.laws import LAWS
from theory.profile import predict_profile
from theory.setting import MERGES, Gains, Setting

__all__ = [
    "LAWS",
    "MERGES",
    "FrontPrediction",
    "Gains",
    "Law",
    "Premises",
    "Setting",
    "predict_front",
    "predict_profile",
]
