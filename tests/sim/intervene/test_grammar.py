"""The grammar of interventions: text and JSON forms, block ranges, and what is refused."""

import dataclasses
import json

import pytest

from meanmode.sim.intervene.grammar import GROUPS, Intervention

TEXTS = [
    "delete:mean:writer-gradient@blocks=8-16",
    "scale=0.5:mean:branch@blocks=1,3,8-16",
    "scale=-2.0:centered:reader-gradient",
    "replace:centered:trunk@seed=3",
    "control:delete:mean:writer-gradient@blocks=4@seed=7",
    "control:scale=1e-05:centered:branch",
    *(f"freeze:{group}@blocks=1-4" for group in GROUPS),
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_json_round_trip(text: str) -> None:
    found = Intervention.parse(text)
    assert str(found) == text
    assert Intervention(**json.loads(json.dumps(dataclasses.asdict(found)))) == found
    assert hash(found) == hash(Intervention.parse(text))


@pytest.mark.parametrize(
    ("text", "blocks", "written"),
    [("1,2,3,7", (1, 2, 3, 7), "1-3,7"), ("5-5", (5,), "5"), ("2,4-5,6", (2, 4, 5, 6), "2,4-6")],
)
def test_blocks_are_ranges(text: str, blocks: tuple[int, ...], written: str) -> None:
    found = Intervention.parse(f"delete:mean:trunk@blocks={text}")
    assert found.blocks == blocks and str(found) == f"delete:mean:trunk@blocks={written}"
    assert [number for number in range(1, 9) if found.acts_on(number)] == list(blocks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("remove:mean:trunk", "unknown action 'remove': choose one of delete, scale, replace, freeze"),
        ("", "unknown action '': choose one of delete"),
        ("control", "unknown action '': choose one of delete"),
        ("delete:middle:trunk", "unknown part 'middle': choose one of mean, centered"),
        ("delete:mean:weight", "unknown target 'weight': choose one of writer-gradient, reader-gradient"),
        ("delete:mean", r"has the form \[control:\]ACTION\[=FACTOR\]:PART:TARGET.*got 'delete:mean'"),
        ("freeze:mean:trunk", r"has the form freeze:GROUP.*got 'freeze:mean:trunk'"),
        ("freeze:heads", "unknown group of parameters 'heads': choose one of readers, writers"),
        ("control:freeze:ffn", "freeze takes no part and no control, got control:freeze:ffn"),
        ("scale:mean:trunk", "scale needs a factor, and no other action takes one"),
        ("delete=0.5:mean:trunk", "scale needs a factor, and no other action takes one"),
        ("scale=half:mean:trunk", "'half' in 'scale=half:mean:trunk' is not a number"),
        ("scale=nan:mean:trunk", "must be finite, got nan"),
        ("delete:mean:trunk@step=3", "unknown option 'step': choose one of blocks, seed"),
        ("delete:mean:trunk@seed=3", "only replace and controls take a seed"),
        ("replace:mean:trunk@seed=-1", "a seed, which must not be negative"),
        ("delete:mean:trunk@blocks=a", "is not a whole number"),
        ("delete:mean:trunk@blocks=", "is not a whole number"),
        ("delete:mean:trunk@blocks=6-4", "ascending order, got '6-4'"),
        ("delete:mean:trunk@blocks=0-4", "numbered from 1"),
        ("delete:mean:trunk@blocks=4,4", "numbered from 1 and ascending"),
    ],
)
def test_invalid_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Intervention.parse(text)
