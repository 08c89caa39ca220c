"""The registry of generated tables, each with its caption, by the name that a page uses."""

from meanmode.sweeps.studies.results.event_tables import (
    event_batches,
    event_causes,
    event_distances,
    event_half_rates,
    events,
)
from meanmode.sweeps.studies.results.exponent_tables import depth_rates, depth_steps, stack_exponents
from meanmode.sweeps.studies.results.hazard_tables import (
    hazard_afterwards,
    hazard_candidates,
    hazard_fit,
    hazard_gains,
    hazard_half_rates,
    hazard_history,
    hazard_means,
    hazard_ramps,
    hazard_schedules,
    hazard_slopes,
)
from meanmode.sweeps.studies.results.judged_tables import judged
from meanmode.sweeps.studies.results.long_context_tables import frame_means, long_exponents, long_fronts
from meanmode.sweeps.studies.results.mixer_tables import mixer_events, mixer_ramps
from meanmode.sweeps.studies.results.prevention_table import prevention
from meanmode.sweeps.studies.results.run_tables import (
    event_factors,
    event_moves,
    mode_ratios,
    ramps,
    regression_lines,
    sample_metrics,
    timestep_scores,
)
from meanmode.sweeps.studies.results.schedule_tables import rate_groups, weight_averages
from meanmode.sweeps.studies.results.splitting_table import silence
from meanmode.sweeps.studies.results.stack_tables import exponents, fronts, profiles
from meanmode.sweeps.studies.results.stock_tables import (
    backbone_ramps,
    backbones,
    watched_alarms,
    watched_merges,
)
from meanmode.sweeps.studies.results.structure_tables import (
    gram_cases,
    gram_exact,
    structured_fronts,
    structured_gradients,
)
from meanmode.sweeps.studies.results.training_tables import (
    critical_rates,
    detection,
    effects,
    functional_steps,
    margins,
    order_of_events,
)
from meanmode.sweeps.studies.results.waiting_tables import (
    committor,
    forecast_shares,
    predictors,
    scored_shares,
    shown_half_rates,
)
from meanmode.sweeps.studies.results.warning_tables import early_warning, reforecasts

TABLES = {
    "fronts": fronts,
    "profiles": profiles,
    "exponents": exponents,
    "long_fronts": long_fronts,
    "long_exponents": long_exponents,
    "frame_means": frame_means,
    "structured_fronts": structured_fronts,
    "structured_gradients": structured_gradients,
    "gram_exact": gram_exact,
    "gram_cases": gram_cases,
    "critical_rates": critical_rates,
    "effects": effects,
    "order_of_events": order_of_events,
    "functional_steps": functional_steps,
    "margins": margins,
    "detection": detection,
    "scored_shares": scored_shares,
    "forecast_shares": forecast_shares,
    "half_rates": shown_half_rates,
    "predictors": predictors,
    "committor": committor,
    "ramps": ramps,
    "event_moves": event_moves,
    "event_factors": event_factors,
    "regressions": regression_lines,
    "events": events,
    "event_batches": event_batches,
    "event_distances": event_distances,
    "event_causes": event_causes,
    "event_half_rates": event_half_rates,
    "mixer_ramps": mixer_ramps,
    "prevention": prevention,
    "rate_groups": rate_groups,
    "weight_averages": weight_averages,
    "mixer_events": mixer_events,
    "silence": silence,
    "early_warning": early_warning,
    "reforecasts": reforecasts,
    "hazard_fit": hazard_fit,
    "hazard_candidates": hazard_candidates,
    "hazard_ramps": hazard_ramps,
    "hazard_slopes": hazard_slopes,
    "hazard_schedules": hazard_schedules,
    "hazard_half_rates": hazard_half_rates,
    "hazard_history": hazard_history,
    "hazard_means": hazard_means,
    "hazard_gains": hazard_gains,
    "hazard_afterwards": hazard_afterwards,
    "mode_ratios": mode_ratios,
    "samples": sample_metrics,
    "timestep_probe": timestep_scores,
    "stack_exponents": stack_exponents,
    "depth_steps": depth_steps,
    "depth_rates": depth_rates,
    "watched_alarms": watched_alarms,
    "watched_merges": watched_merges,
    "backbones": backbones,
    "backbone_ramps": backbone_ramps,
    "judged": judged,
}
"""Name -> function of the folder of the stores, names of stores in it and options."""
