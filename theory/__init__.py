"""What is claimed: laws with machine-checked proofs, and the theory that predicts the collapse front."""

from theory.coverage import has_theory, silence
from theory.front import FrontPrediction, deterministic_fronts, predict_front
from theory.functional_step import FunctionalStep, predict_functional_step
from theory.law import Law, Premises
from theory.laws import LAWS
from theory.phase import BlockMap
from theory.profile import predict_profile
from theory.setting import MERGES, MIXERS, Gains, Setting

__all__ = [
    "LAWS",
    "MERGES",
    "MIXERS",
    "BlockMap",
    "FrontPrediction",
    "FunctionalStep",
    "Gains",
    "Law",
    "Premises",
    "Setting",
    "deterministic_fronts",
    "has_theory",
    "predict_front",
    "predict_functional_step",
    "predict_profile",
    "silence",
]
