"""Claims 3 to 5: class centres on long tails, NPCFace on faces, every loss on one benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

from plan import (
    CONFIRM_SEEDS,
    Part,
    Run,
    Variant,
    best_of_families,
    lengthened,
    runs_of,
    screen_of,
    variant,
)

TAILED, TAILED_ALL = "omniglot/hold=164,tail=steep", "omniglot/tail=steep"
TAIL = {"epochs": 25}
FACES, FACES_ALL = "lfw/hold=150", "lfw"
SMALL, SMALL_ALL = "omniglot/hold=164", "omniglot"
GLYPHS, GLYPH_EPOCHS = "glyphs/classes=2000", 24  # three epochs are 134 steps: nothing is trained


def centres(rule: str, **arguments: Any) -> Part:
    """Class-centre weights."""
    return ["ClassCentres", {"rule": rule, **arguments}]


def ir_variants() -> list[Variant]:
    """Learned weights and class centres, for AM- and A-Softmax."""
    cosface = ["CosFace", {"scale": 20, "margin": 0.2}]
    sphereface = ["SphereFace", {"margin": 4, "lam": 5.0}]
    rules = [
        ("learned", None),
        ("ema alpha=0.5", centres("ema", alpha=0.5)),
        ("exact every=100", centres("exact", refresh_every=100)),
        ("center_loss alpha=0.5", centres("center_loss", alpha=0.5)),
        ("ema alpha=0.1", centres("ema", alpha=0.1)),
    ]
    found = []
    for name, objective, num in (("am", cosface, 5), ("a", sphereface, 3)):
        for rule, weights in rules[:num]:
            head = {} if weights is None else {"weights": weights}
            found.append(variant(f"{name}_{rule}", objective, changes=TAIL, **head))
    return found


def ir(stage: str, rows: list[Mapping[str, Any]]) -> list[Run]:
    """Claim 3: weights that are class centres serve the tail, and lie at the centres."""
    if stage == "screen":
        return screen_of("ir", TAILED, ir_variants())
    best = best_of_families(rows, "ir", TAILED, ir_variants())
    return runs_of("ir", stage, TAILED_ALL, best.values(), CONFIRM_SEEDS)


def hard_negative_losses(scale: float, margins: Sequence[float]) -> list[Variant]:
    """NPCFace and the losses it is compared with, at the given margins (radians; 0.7 of it as a cosine)."""
    found = []
    for margin in margins:
        cosine, hard = round(0.7 * margin, 3), {"scale": scale, "margin": margin}
        npc = {"scale": scale, "mask_margin": margin, "m0": round(0.8 * margin, 3), "m1": 0.2}
        found += [
            variant(f"npcface m={margin}", ["NPCFace", npc]),
            variant(f"arcface m={margin}", ["ArcFace", hard]),
            variant(f"cosface m={cosine}", ["CosFace", {"scale": scale, "margin": cosine}]),
            variant(f"mv_am m={cosine}", ["MVSoftmax", {"scale": scale, "margin": cosine}]),
            variant(f"mv_arc m={margin}", ["MVSoftmax", {**hard, "variant": "arc"}]),
            variant(f"curricularface m={margin}", ["CurricularFace", hard]),
        ]
    return found


def npcface(stage: str, rows: list[Mapping[str, Any]]) -> list[Run]:
    """Claim 4: NPCFace at low FAR on faces (and on characters, which give many more pairs)."""
    variants = hard_negative_losses(32, (0.3,))
    if stage == "screen":
        return screen_of("npcface", FACES, variants)
    best = best_of_families(rows, "npcface", FACES, variants, metric="select_tar_1e-03")
    runs = runs_of("npcface", stage, FACES_ALL, best.values(), CONFIRM_SEEDS)
    short, longer = best.values(), [lengthened(one, GLYPH_EPOCHS) for one in best.values()]
    return runs + runs_of("npcface", stage, GLYPHS, [*short, *longer], CONFIRM_SEEDS)


def all_losses() -> list[Variant]:
    """Every objective, at a mild margin."""
    scale = {"scale": 20}
    mag = {"lower_norm": 5, "upper_norm": 20, "regulariser": 5}
    found = [variant("normface", ["NormFace", scale]), *hard_negative_losses(20, (0.2,))]
    found += [
        variant("dsoftmax d=0.9", ["DSoftmax", {**scale, "end_point": 0.9}]),
        variant("dsoftmax d=0.7", ["DSoftmax", {**scale, "end_point": 0.7}]),
        variant("circle m=0.25", ["CircleLoss", {"scale": 64, "relaxation": 0.25}]),
        variant("circle m=0.4", ["CircleLoss", {"scale": 64, "relaxation": 0.4}]),
        variant("circle s=32", ["CircleLoss", {"scale": 32, "relaxation": 0.25}]),
        variant("circle s=128", ["CircleLoss", {"scale": 128, "relaxation": 0.25}]),
        variant("adacos", ["AdaCos", {}]),
        variant("adacos_momentum_1", ["AdaCos", {"momentum": 1.0}]),
        variant("adacos_fixed", ["AdaCos", {"dynamic": False}]),
        variant("normface s=10", ["NormFace", {"scale": 10}]),  # near AdaCos's scale at the start
        variant("normface s=7", ["NormFace", {"scale": 7}]),
        variant("arcface_s10 m=0.2", ["ArcFace", {"scale": 10, "margin": 0.2}]),
        variant("arcface_s10 m=0.1", ["ArcFace", {"scale": 10, "margin": 0.1}]),
        variant("cosface_s10 m=0.1", ["CosFace", {"scale": 10, "margin": 0.1}]),
        variant("sphereface m=4", ["SphereFace", {"margin": 4, "lam": 5.0}]),
        variant("combined", ["CombinedMargin", {**scale, "m1": 1.0, "m2": 0.15, "m3": 0.1}]),
        variant("adaface m=0.2", ["AdaFace", {**scale, "margin": 0.2}]),
        variant(
            "magface m=0.1..0.3",
            ["MagFace", {**scale, **mag, "lower_margin": 0.1, "upper_margin": 0.3}],
        ),
        variant(
            "sub_centres K=3",
            ["ArcFace", {**scale, "margin": 0.2}],
            weights=["SubCentres", {"num": 3}],
        ),
        variant(
            "arcface_straight_through m=0.3",
            ["ArcFace", {**scale, "margin": 0.3, "variant": "straight_through"}],
        ),
    ]
    return found


def losses(stage: str, rows: list[Mapping[str, Any]]) -> list[Run]:
    """Claim 5: one table of every loss."""
    if stage == "screen":
        return screen_of("losses", SMALL, all_losses())
    best = best_of_families(rows, "losses", SMALL, all_losses())
    return runs_of("losses", stage, SMALL_ALL, best.values(), CONFIRM_SEEDS)
