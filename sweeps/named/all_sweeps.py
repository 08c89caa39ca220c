"""The named sweeps and studies, one per claim."""

from meanmode.sweeps.engine.committor_study import Committor
from meanmode.sweeps.engine.splitting.splitting_study import SplittingStudy
from meanmode.sweeps.engine.stock.stock_study import StockStudy
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.engine.sweep import Sweep
from meanmode.sweeps.named.collapse_front import COLLAPSE_FRONT
from meanmode.sweeps.named.committor import COMMITTOR
from meanmode.sweeps.named.critical_rate import (
    CRITICAL_RATE_DEEP,
    CRITICAL_RATE_DEPTH,
    CRITICAL_RATE_ENTRY,
    CRITICAL_RATE_SLOPES,
)
from meanmode.sweeps.named.critical_rate_settings import CRITICAL_RATE_PILOTS, CRITICAL_RATE_SETTINGS
from meanmode.sweeps.named.depth_profiles import DEPTH_PROFILES
from meanmode.sweeps.named.detector_unseen import DETECTOR_UNSEEN
from meanmode.sweeps.named.event_jumps import (
    EVENT_BATCHES,
    EVENT_CAUSES,
    EVENT_CAUSES_RATES,
    EVENT_DEPTH,
    EVENT_DEPTH_400,
    EVENT_DEPTH_400_SLOWER,
    EVENT_DISTANCES,
    EVENT_REPLICATES,
)
from meanmode.sweeps.named.event_silence import EVENT_SILENCE
from meanmode.sweeps.named.front_settings import FRONT_SETTINGS, FRONT_SETTINGS_LARGE
from meanmode.sweeps.named.hazard_causes import COMMITTOR_400, HAZARD_HISTORY, HAZARD_MEAN_WRITE
from meanmode.sweeps.named.hazard_ramps import (
    HAZARD_200,
    HAZARD_DEEP,
    HAZARD_SCHEDULES,
    HAZARD_SETTINGS,
    HAZARD_SLOPES,
)
from meanmode.sweeps.named.interventions import INTERVENTION_TABLE, LADDER, LADDER_TOP
from meanmode.sweeps.named.mixers_and_merges import MIXERS_AND_MERGES
from meanmode.sweeps.named.stabilisers import STABILISERS, STABILISERS_DEEP
from meanmode.sweeps.named.stock.backbones import BACKBONE_RAMPS, BACKBONE_TEXT, BACKBONE_VIT
from meanmode.sweeps.named.stock.watched_alarms import (
    WATCHED_ALARMS,
    WATCHED_ALARMS_DEEP,
    WATCHED_ALARMS_UNLOGGED,
)
from meanmode.sweeps.named.stock.watched_merges import WATCHED_MERGES
from meanmode.sweeps.named.structure.frame_means import FRAME_MEANS, FRAME_MEANS_LARGEST
from meanmode.sweeps.named.structure.long_contexts import LONG_CONTEXTS, LONG_CONTEXTS_LARGEST
from meanmode.sweeps.named.structure.structured_fronts import STRUCTURED_FRONTS, STRUCTURED_GRADIENTS
from meanmode.sweeps.named.structure.trainability import TRAINABILITY
from meanmode.sweeps.named.token_law import TOKEN_LAW
from meanmode.sweeps.named.training.depth_pays import DEPTH_PAYS
from meanmode.sweeps.named.training.long_schedules import (
    LONG_HORIZONS,
    RESTARTS,
    SECOND_MOMENTS,
    WEIGHT_AVERAGES,
)
from meanmode.sweeps.named.training.mixers_training import (
    MIXERS_EVENTS,
    MIXERS_HALF_RATES,
    MIXERS_SURVIVORS,
    MIXERS_TRAINING,
)
from meanmode.sweeps.named.waiting_time import (
    WAITING_TIME,
    WAITING_TIME_400,
    WAITING_TIME_400_LOW,
    WAITING_TIME_1000,
    WAITING_TIME_BETWEEN,
    WAITING_TIME_DEEP,
    WAITING_TIME_LOW,
)
from meanmode.sweeps.named.waiting_time_spectrum import WAITING_TIME_LOW_SPECTRUM, WAITING_TIME_SPECTRUM

SWEEPS: dict[str, Sweep | Study | Committor | SplittingStudy | StockStudy] = {
    sweep.name: sweep
    for sweep in (
        COLLAPSE_FRONT,
        FRONT_SETTINGS,
        FRONT_SETTINGS_LARGE,
        DEPTH_PROFILES,
        TOKEN_LAW,
        LONG_CONTEXTS,
        LONG_CONTEXTS_LARGEST,
        FRAME_MEANS,
        FRAME_MEANS_LARGEST,
        TRAINABILITY,
        MIXERS_AND_MERGES,
        STRUCTURED_FRONTS,
        STRUCTURED_GRADIENTS,
        CRITICAL_RATE_SLOPES,
        CRITICAL_RATE_DEPTH,
        CRITICAL_RATE_DEEP,
        CRITICAL_RATE_ENTRY,
        CRITICAL_RATE_PILOTS,
        CRITICAL_RATE_SETTINGS,
        STABILISERS,
        STABILISERS_DEEP,
        MIXERS_TRAINING,
        MIXERS_HALF_RATES,
        MIXERS_EVENTS,
        MIXERS_SURVIVORS,
        LONG_HORIZONS,
        RESTARTS,
        SECOND_MOMENTS,
        WEIGHT_AVERAGES,
        DEPTH_PAYS,
        INTERVENTION_TABLE,
        LADDER,
        LADDER_TOP,
        WAITING_TIME,
        WAITING_TIME_LOW,
        WAITING_TIME_DEEP,
        WAITING_TIME_400,
        WAITING_TIME_400_LOW,
        WAITING_TIME_1000,
        WAITING_TIME_BETWEEN,
        WAITING_TIME_SPECTRUM,
        WAITING_TIME_LOW_SPECTRUM,
        COMMITTOR,
        DETECTOR_UNSEEN,
        EVENT_REPLICATES,
        EVENT_BATCHES,
        EVENT_DISTANCES,
        EVENT_CAUSES,
        EVENT_CAUSES_RATES,
        EVENT_DEPTH,
        EVENT_DEPTH_400,
        EVENT_DEPTH_400_SLOWER,
        EVENT_SILENCE,
        HAZARD_DEEP,
        HAZARD_200,
        HAZARD_SLOPES,
        HAZARD_SCHEDULES,
        HAZARD_SETTINGS,
        HAZARD_HISTORY,
        HAZARD_MEAN_WRITE,
        COMMITTOR_400,
        WATCHED_ALARMS,
        WATCHED_ALARMS_DEEP,
        WATCHED_ALARMS_UNLOGGED,
        WATCHED_MERGES,
        BACKBONE_VIT,
        BACKBONE_TEXT,
        BACKBONE_RAMPS,
    )
}
"""Name -> sweep."""


def named_sweep(name: str) -> Sweep | Study | Committor | SplittingStudy | StockStudy:
    """The sweep or study with this name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in SWEEPS:
        raise ValueError(f"unknown sweep {name!r}: choose one of {', '.join(SWEEPS)}")
    return SWEEPS[name]


def named_study(name: str) -> Study:
    """The study of training runs with this name.

    Raises:
        ValueError: an unknown name, or that of another kind of sweep.
    """
    found = SWEEPS.get(name)
    if not isinstance(found, Study):
        known = ", ".join(key for key, value in SWEEPS.items() if isinstance(value, Study))
        raise ValueError(f"unknown study {name!r}: choose one of {known}")
    return found
