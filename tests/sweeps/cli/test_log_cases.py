"""Made-up logs in the forms people have, each with the verdict a person expects, through import and onset."""

import json
from pathlib import Path

import pytest

CASES = Path(__file__).parents[4] / "shared" / "cases"

pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")

FILES = {
    "a02": "a02_trainer_state/trainer_state.json",
    "a03": "a03_guided_progress/progress.csv",
    "a05": "a05_megatron/main_log.txt",
    "a08": "a08_wandb_history/history.jsonl",
    "a13": "a13_gz/metrics.jsonl.gz",
    "b01": "b01_killed_in_a_line/metrics.jsonl",
    "b02": "b02_header_again_after_resume/metrics.csv",
    "b09": "b09_second_file_restarts",
    "c04": "c04_steps_as_floats/metrics.csv",
    "c06": "c06_semicolons/metrics.csv",
    "d01": "d01_diverges_no_cosine/metrics.csv",
    "d02": "d02_nan_to_the_end_no_cosine/metrics.csv",
    "d04": "d04_sparse_one_row_spike/metrics.csv",
    "d06": "d06_fine_tuning_blows_up/metrics.csv",
    "d08": "d08_restart_bump/metrics.csv",
    "d09": "d09_collapse_every_50_steps/metrics.csv",
    "d10": "d10_noisy_diffusion_plateau/metrics.csv",
}

FAILURES = {
    "a02": ("plain_divergence", (510, 510), (510, 540)),
    "d01": ("plain_divergence", (300, 335), (296, 310)),
    "d02": ("plain_divergence", (14700, 14700), (14700, 14900)),
    "d06": ("plain_divergence", (75, 100), None),
    "d09": ("mean_mode", (3500, 3500), (3450, 3650)),
}
"""Case -> kind, first and last step of the onset, and those of the alarm; all other cases are healthy."""


@pytest.mark.parametrize("case", FILES)
def test_the_verdict_is_the_one_a_person_expects(mms, tmp_path: Path, case: str) -> None:
    assert mms("import", CASES / FILES[case], "--out", tmp_path / "run")[0] == 0
    status, out, err = mms("onset", tmp_path / "run", "--json")
    document = json.loads(out)
    assert status == 0 and err == ""
    kind, onset, alarm = FAILURES.get(case, ("none", None, None))
    assert document["onset_kind"] == kind
    if onset is None:
        assert document["onset_step"] is None and document["alarms"] == []
        return
    assert onset[0] <= document["onset_step"] <= onset[1]
    if alarm is not None:
        (raised,) = document["alarms"]
        assert alarm[0] <= raised["step"] <= alarm[1]


def test_the_begin_of_a_spike_is_a_remark(mms, tmp_path: Path) -> None:
    mms("import", CASES / FILES["a05"], "--out", tmp_path / "run")
    notes = json.loads(mms("onset", tmp_path / "run", "--json")[1])["notes"]
    assert any("from step 480 on, in the last 2 rows: too few" in note for note in notes)
