"""head.objective may be a class of the user's own, by import path."""

import pytest
from small_runs import lines, settings, train

from mpsoftmax.train.parts import build_objective


@pytest.mark.parametrize("world", [1, 2])
def test_an_own_objective_trains_as_ours_of_the_same_formula(ranks, tmp_path, world):
    specs = {"ours": "cosface", "own": "own_objective:MyMargin"}
    for name, kind in specs.items():
        objective = f"head.objective={{kind: '{kind}', scale: 16, margin: 0.1}}"
        ranks.run(train, world, folder=tmp_path / name, overrides=(objective,))
    found = [[line["loss"] for line in lines(tmp_path / name)] for name in specs]
    assert len(found[0]) == 10
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("own_objective:Missing", "has no attribute 'Missing'"),
        (
            "own_objective:NotAnObjective",
            "allowed: a dataclass that is a subclass of mpsoftmax.Obj",
        ),
        ("nobodys_objective:Mine", "no module named 'nobodys_objective'"),
        ("{kind: 'own_objective:MyMargin', margn: 0.3}", "did you mean 'margin'"),
    ],
)
def test_what_cannot_be_an_objective_is_named(tmp_path, objective, message):
    with pytest.raises(ValueError, match=message) as raised:
        build_objective(settings(tmp_path, f"head.objective={objective}"))
    assert str(raised.value).startswith("head.objective")
