"""Hand-worked values of every objective, through the whole head (by_hand.py has the set-up)."""

import math

import pytest
import torch
from by_hand import Z, along, check, close, head_of, row, watched

import mpsoftmax as mp

# Phi = log(1 + e^{l - phi}), Phi_l = q = 1 / (1 + e^{phi - l}), Phi_t = -q phi'(t).
MARGINS = {
    # phi = 16 * 0.6
    "normface": (mp.NormFace(16.0), 0.6, 0.0060255659788519989251, 0.01542214289595318135),
    # phi = 16 (0.6 - 0.35)
    "cosface": (mp.CosFace(16.0, 0.35), 0.6, 0.96865214262142382195, 1.5926869115458638347),
    # phi = 16 cos(arccos 0.6 + 0.5), phi' = 16 sin(arccos 0.6 + 0.5) / 0.8
    "arcface": (mp.ArcFace(16.0, 0.5), 0.6, 2.3078967946100112496, -0.42178275566290588871),
    # arccos(-0.96) + 0.5 = 3.358 > pi: cos rises again and phi' is negative, as published
    "arcface past pi": (mp.ArcFace(16.0, 0.5), -0.96, 20.118764995593803144, 18.799576512856870898),
    # t is held at 1 - 1e-5 before arccos, and gets no gradient there: only the negatives push
    "arcface t=1": (
        mp.ArcFace(16.0, 0.5), 1.0, 7.3690093904497198544e-5, 0.0011323664889070626733,
    ),
    "arcface t=-1": (mp.ArcFace(16.0, 0.5), -1.0, 18.566755829118135229, 15.367170018788154583),
    # the value of arcface, but phi' = 16
    "straight through": (
        mp.ArcFace(16.0, 0.5, "straight_through"), 0.6, 2.3078967946100112496, 2.3118131254759301069,
    ),
    # phi = +-16 cos 0.5 exactly: nothing is held back where nothing is infinite
    "straight through t=1": (
        mp.ArcFace(16.0, 0.5, "straight_through"), 1.0, 7.1195128784059489438e-5,
        0.0010940287127682582946,
    ),
    "straight through t=-1": (
        mp.ArcFace(16.0, 0.5, "straight_through"), -1.0, 18.53259142936771505,
        15.367170014173194834,
    ),
    # -0.96 < cos(pi - 0.5) = -0.8776: phi = 16 (-0.96 - 0.5 sin 0.5), phi' = 16
    "fallback": (
        mp.ArcFace(16.0, 0.5, "fallback"), -0.96, 23.686674739065777004, 10.887170151012527059,
    ),
    "fallback t=-1": (
        mp.ArcFace(16.0, 0.5, "fallback"), -1.0, 24.326674739041365169, 15.36717015115630916,
    ),
    # -0.8 is still on this side of it: arcface
    "fallback not yet": (
        mp.ArcFace(16.0, 0.5, "fallback"), -0.8, 20.326812394464173227, 13.07902443211845365,
    ),
    # no margin at t <= 0: phi = 16 * -0.28
    "easy": (mp.ArcFace(16.0, 0.5, "easy"), -0.28, 8.9713974288522646688, 0.0071692410328622885065),
    "easy t>0": (mp.ArcFace(16.0, 0.5, "easy"), 0.6, 2.3078967946100112496, -0.42178275566290588871),
    # phi = 16 (cos(arccos 0.6 + 0.3) - 0.2)
    "combined": (
        mp.CombinedMargin(16.0, 1.0, 0.3, 0.2), 0.6, 2.3979986250104265601, 0.27442929685538887192,
    ),
    # phi = 16 (cos(1.5 arccos 0.6 + 0.2) - 0.1)
    "combined m1": (
        mp.CombinedMargin(16.0, 1.5, 0.2, 0.1), 0.6, 6.415230411611394231, -8.6138402733384996526,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MARGINS)
def test_margins(name):
    objective, t, loss, tangent = MARGINS[name]
    check(objective, t, Z, loss, tangent)


def test_cosines_of_one_and_minus_one():
    """s = 64. Target -1, negatives 1, -1, 0: log(1 + (e^64 + e^-64 + 1) e^64) = 128; only 0 has a tangent.

    Target 1, same negatives: log(1 + (e^64 + e^-64 + 1) e^-64) = log 2 + 8e-29. Target 1, negatives -1, -1:
    2 e^-128, which 1 - p would have lost at 1e-17.
    """
    normface = mp.NormFace(64.0)
    check(normface, -1.0, (1.0, -1.0, 0.0), 128.0, 1.0264389699511282259e-26)
    check(normface, 1.0, (1.0, -1.0, 0.0), math.log(2.0), 5.1321948497556411295e-27)
    head = head_of(normface, [row(z) for z in (1.0, -1.0, -1.0)])
    close(head(along(1.0), torch.tensor([0])), 5.1444187452848296537e-56, atol=0.0)


# a = 7: negatives a z; phi = a (lam t + psi) / (1 + lam), psi = (-1)^k cos 4 theta - 2 k. At t = 0.6 theta is
# 0.927 and k = 1, psi = 0.8432 - 2; at -0.8 theta is 2.498 and k = 3, psi = 0.8432 - 6. dL/da =
# q (sum_j pi_j z_j - (lam t + psi) / (1 + lam)).
@pytest.mark.parametrize(
    ("t", "loss", "tangent", "radial"),
    [
        (0.6, 0.66516533406782365486, -0.029358947638431462591, -0.030767976323940598358),
        (-0.8, 12.776566887176654959, 0.10623356870468147296, 1.7699951722258808399),
    ],
)
def test_sphereface(t, loss, tangent, radial):
    check(mp.SphereFace(4, 5.0), t, Z, loss, tangent, radial, a=7.0)


def test_sphereface_anneals():
    """lam = max(5, 8 / (1 + 0.1 step)): 8 at step 0, 6.67 at step 2, 5 from step 6 on."""
    objective = mp.SphereFace(4, 5.0, lam_start=8.0, lam_decay=0.1)
    head = head_of(objective, [row(z) for z in (0.6, *Z)])
    expected = {
        0: (0.39010005210724267672, -0.051983158483391841761, 0.0047125426000997726931),
        2: (0.47319625959096354724, -0.047872481435298818989, -0.0043373939791486227604),
        7: (0.66516533406782365486, -0.030767976323940598358, -0.029358947638431462591),
    }
    for step in range(8):
        features = along(7.0)
        loss = head(features, torch.tensor([0]))
        loss.backward()
        if step in expected:
            close(loss, expected[step][0])
            close(features.grad, [expected[step][1:]])
            with torch.no_grad():
                close(head(features, torch.tensor([0])), expected[step][0])
        head.step()


# sp(30 (0.9 + m - t)) + sp(l) with l of s = 30; Phi_t = -30 sig(30 (0.9 + m - t)), Phi_l = sig(l).
@pytest.mark.parametrize(
    ("objective", "t", "negatives", "loss", "tangent"),
    [
        (mp.DSoftmax(30.0, 0.9), 0.6, Z, 17.400573035741188248, 4.7967579216104901399),
        # at the end point: log 2 + log(1 + e^8.4), half the strength
        (mp.DSoftmax(30.0, 0.9), 0.9, (0.28,), 9.0933720226052569392, 22.255176861706270765),
        # one class: the inter part is log(1 + 0) = 0
        (mp.DSoftmax(30.0, 0.9), 0.6, (), 9.0001234021897232588, -23.997038530176330438),
        (mp.DSoftmax(30.0, 0.9, 0.05), 0.6, Z, 18.900477169621693675, 4.7944573083735705817),
        # 57 + 30; no tangent anywhere
        (mp.DSoftmax(30.0, 0.9), -1.0, (1.0, -1.0), 87.000000000000093576, 0.0),
    ],
)
def test_dsoftmax(objective, t, negatives, loss, tangent):
    check(objective, t, negatives, loss, tangent)


# s = 32, m = 0.35, h = 1.12. Hard: 32 (1.12 z + 0.12), slope 32 * 1.12. am: hard above t - 0.35, target
# t - 0.35 where t > 0.35. arc: hard above cos(arccos t + 0.35), target that where t > 0.
@pytest.mark.parametrize(
    ("kind", "t", "negatives", "hard", "loss", "tangent"),
    [
        ("am", 0.6, (0.28, 0.2, -0.6), 1, 5.8785695216342161985, 8.7800276657488947823),
        ("am", 0.28, (0.28, 0.2, -0.6), 2, 4.977415973238666894, 3.6989004175057956407),
        ("am", 0.6, (0.2, -0.6), 0, 0.18390074088961916293, 0.9664769645869887746),
        ("am", -0.8, (0.28, 0.2, -0.6), 3, 39.530500266481167483, 15.244569586033032862),
        ("arc", 0.6, (0.28, 0.2, 0.5), 1, 12.502234476721097308, 0.40676879545025177368),
        ("arc", -0.28, (0.28, 0.2, -0.8), 2, 22.890500266595642307, 3.7245695856067023221),
    ],
)
def test_mvsoftmax(kind, t, negatives, hard, loss, tangent):
    head = check(mp.MVSoftmax(32.0, 0.35, 1.12, kind), t, negatives, loss, tangent)
    watched(head, "hard_negatives", hard)
    watched(head, "hard_share", float(hard > 0))


# T = 0.01 t after the first batch of one sample. Hard above cos(arccos t + 0.5): 16 z (T + z), slope
# 16 (T + 2 z). At 0.6 that is 0.143; at -0.28 it is -0.706 and all are hard.
@pytest.mark.parametrize(
    ("t", "negatives", "hard", "loss", "tangent"),
    [
        (0.6, Z, 1, 0.3830992655097465737, -1.7675431451064656774),
        (0.6, (0.08, -0.6, 0.0), 0, 0.38278059114137872333, 0.039527526596614489499),
        (-0.28, (0.28, 0.2, -0.6), 3, 17.098678945955748535, -26.354729421622455572),
        # -0.96: the fallback, phi = 16 (-0.96 - 0.5 sin 0.5)
        (-0.96, Z, 3, 25.060010501308277839, -19.691231525811136374),
    ],
)
def test_curricularface(t, negatives, hard, loss, tangent):
    head = check(mp.CurricularFace(16.0, 0.5), t, negatives, loss, tangent)
    watched(head, "hard_negatives", hard)
    watched(head, "hard_share", float(hard > 0))
    watched(head, "ema", 0.01 * t)


def test_curricularface_moves_its_average_in_steps_only():
    """T = 0.006, then 0.01 * 0.6 + 0.99 * 0.006 = 0.01194; evaluation uses what was committed."""
    head = head_of(mp.CurricularFace(16.0, 0.5), [row(z) for z in (0.6, *Z)])
    label = torch.tensor([0])

    def evaluated():
        with torch.no_grad():
            return head(along(1.0), label)

    head(along(1.0), label).backward()
    head.step()
    close(evaluated(), 0.3830992655097465737)
    close(evaluated(), 0.3830992655097465737)
    features = along(1.0)
    loss = head(features, label)
    watched(head, "ema", 0.01194)
    loss.backward()
    close(loss, 0.38979421195425563006)
    close(features.grad, [[0.0, -1.7802200285218948207]])
    close(evaluated(), 0.3830992655097465737)  # no step yet
    head.zero_grad()
    head.step()
    close(evaluated(), 0.3830992655097465737)  # a skipped step
    head(along(1.0), label).backward()
    head.step()
    close(evaluated(), 0.38979421195425563006)


# s = 16. Hard above cos(arccos t + 0.5): 16 (1.1 z + 0.2), slope 17.6; the margin is 0.4 + 0.2 * (mean hard
# z), or 0.4 where none is hard, and applies where t > 0.
@pytest.mark.parametrize(
    ("t", "negatives", "margin", "loss", "tangent"),
    [
        (0.6, (0.28, 0.8, -0.6, 0.0), 0.508, 15.118716809569466612, -5.2926669977177029244),
        (0.6, (0.08, -0.6), 0.4, 0.073208800918546598523, 0.029695878100427981272),
        (-0.28, (0.28, 0.2, -0.6), 0.392, 12.826842789287370294, 1.6044746991624341135),
        (0.28, (0.6, -0.2, 0.0), 0.4 + 0.4 / 15, 16.03821860604034446, -1.7568831511847865043),
    ],
)
def test_npcface(t, negatives, margin, loss, tangent):
    head = check(mp.NPCFace(16.0), t, negatives, loss, tangent)
    watched(head, "collaborative_margin", margin)


# s = 16, m = 0.25, the weights constant. Negatives 0.28 and 0: 16 * 0.53 * 0.03 with slope 16 * 0.53, and
# 16 * 0.25 * -0.25 with slope 4; -0.6 lies below -m: logit 0, no slope. phi = 16 (1.25 - t) (t - 0.75), its
# slope 16 (1.25 - t).
@pytest.mark.parametrize(
    ("t", "negatives", "above", "loss", "tangent"),
    [
        (0.6, Z, 2, 2.613511391753824699, -3.536053380190024058),
        (1.0, Z, 2, 0.68191648633887167948, 2.2267379027828514694),
        (-1.0, Z, 2, 63.977411049094149429, 4.504347889079990625),
        # two logits of 0 that nothing moves, one of them at -m itself
        (0.6, (-0.6, -0.25), 0, 2.3530540843133440537, -7.5289482022523185618),
    ],
)
def test_circle(t, negatives, above, loss, tangent):
    head = check(mp.CircleLoss(16.0), t, negatives, loss, tangent)
    watched(head, "hard_negatives", above)


# s = sqrt(2) ln 3 = 1.55367 for four classes. Then ln(sum_j e^{s z_j}) / cos(min(pi / 4, arccos t)), where
# arccos 0.6 is above pi / 4, arccos 0.9 below.
@pytest.mark.parametrize(
    ("t", "first", "tangent", "scale", "second"),
    [
        (
            0.6,
            0.76868119998732833299,
            0.12681700114624778054,
            1.5244721496889919905,
            0.7770816617743478708,
        ),
        (
            0.9,
            0.54574968437882701021,
            0.33737464396117483475,
            1.1977384386390219812,
            0.68411859384750830455,
        ),
    ],
)
def test_adacos(t, first, tangent, scale, second):
    """The scale of a batch is used from the next step on; a skipped step or an evaluation changes nothing."""
    head = check(mp.AdaCos(momentum=1.0), t, Z, first, tangent)
    watched(head, "scale", 1.5536723984241864479)
    with torch.no_grad():
        close(head(along(1.0), torch.tensor([0])), first)
    head.step()
    close(head(along(1.0), torch.tensor([0])), second)
    watched(head, "scale", scale)
    close(head.state_dict()["objective_state"], [scale])
    head.zero_grad()
    head.step()
    with torch.no_grad():
        close(head(along(1.0), torch.tensor([0])), second)


def test_adacos_moves_by_its_momentum():
    """0.02 of the way from 1.55367 to 1.52447."""
    head = check(mp.AdaCos(), 0.6, Z, 0.76868119998732833, 0.12681700114624778054)
    head.step()
    close(
        head.state_dict()["objective_state"],
        [0.02 * 1.5244721496889919905 + 0.98 * 1.5536723984241864479],
    )


def test_adacos_fixed():
    """No state; 100,000 classes: sqrt(2) ln 99,999 = 16.2818."""
    head = check(mp.AdaCos(dynamic=False), 0.6, Z, 0.76868119998732833299, 0.12681700114624778054)
    head.step()
    close(head(along(1.0), torch.tensor([0])), 0.76868119998732833299)
    assert head.state_dict()["objective_state"].numel() == 0
    assert mp.AdaCos().for_classes(100_000).scale == pytest.approx(16.28176, abs=1e-4)
    assert mp.AdaCos(scale=7.0).for_classes(100_000).scale == 7.0


def test_adacos_keeps_its_scale_where_a_batch_gives_none():
    """A sample without negatives, or whose negatives' mean sum is below 1: no positive scale follows."""
    for others in ((), (-0.9,)):
        head = head_of(mp.AdaCos(scale=3.0), [row(z) for z in (0.6, *others)])
        head(along(1.0), torch.tensor([0])).backward()
        head.step()
        close(head.state_dict()["objective_state"], [3.0])


def test_adaface():
    """Norms 12 and 28: mean 20, deviation sqrt(128); mean 20, deviation 99 + 0.01 sqrt(128) = 99.113.

    k = 0.333 (a - 20) / 99.114 = -+0.0269; phi = 16 (cos(arccos 0.6 - 0.4 k) - 0.4 - 0.4 k).
    """
    head = head_of(mp.AdaFace(16.0), [row(z) for z in (0.6, *Z)])
    features = along(12.0, 28.0)
    loss = head(features, torch.tensor([0, 0]))
    loss.backward()
    close(loss, 1.5346901662492640069)
    close(features.grad, [[0.0, 0.079957067259999193542], [0.0, 0.037692203577064460054]])
    watched(head, "norm_std", 99.113137084989847604)
    watched(head, "norm_mean", 20.0)


def test_adaface_of_one_sample():
    """It deviates from nothing: mean 0.01 * 12 + 0.99 * 20, deviation as before."""
    head = head_of(mp.AdaFace(16.0), [row(z) for z in (0.6, *Z)])
    head(along(12.0), torch.tensor([0]))
    watched(head, "norm_mean", 19.92)
    watched(head, "norm_std", 100.0)


@pytest.mark.parametrize(
    ("t", "loss", "tangents"),
    [
        # k = -1: phi = 16 cos(theta + 0.4); k = 1: phi = 16 (cos(theta - 0.4) - 0.8)
        (0.6, 2.2773374812660086534, (-0.0043779313900630793611, 0.1266794466042290038)),
        # theta = 0.2: 0.2 - 0.4 is held at 1e-3, phi = 16 (cos 1e-3 - 0.8) without slope
        (
            0.98006657784124163112, 0.76716269535694881171,
            (0.000043334533536495919461, 0.21524013101146629556),
        ),
    ],
)  # fmt: skip
def test_adaface_clips(t, loss, tangents):
    """momentum 1: this batch's statistics, mean 20, deviation 11.31; h = 2 puts k at -1 and 1."""
    head = head_of(mp.AdaFace(16.0, h=2.0, momentum=1.0), [row(z) for z in (t, *Z)])
    features = along(12.0, 28.0)
    value = head(features, torch.tensor([0, 0]))
    value.backward()
    close(value, loss)
    close(features.grad, [[0.0, tangents[0]], [0.0, tangents[1]]])


# m(60) = 0.45 + 0.35 * 50 / 100 = 0.625; regulariser 35 (60 / 110^2 + 1 / 60); dL/da = 35 (110^-2 - 60^-2)
# + q 16 sin(theta + 0.625) 0.35 / 100, the last where t > 0. Outside [10, 110] a is held, without gradient.
@pytest.mark.parametrize(
    ("t", "a", "loss", "tangent", "radial"),
    [
        (0.6, 60.0, 4.967110934113466974, -0.010345652007479667657, 0.048329687626556913933),
        (0.6, 5.0, 5.1610211625976317235, -0.053775002991963984019, 0.0),
        (0.6, 200.0, 7.6223328147840125453, -0.0021844490281695611636, 0.0),
        (-0.28, 60.0, 9.7282844811938624649, 0.00011948735054770480844, -0.0068296602387511478421),
    ],
)
def test_magface(t, a, loss, tangent, radial):
    check(mp.MagFace(16.0), t, Z, loss, tangent, radial, a=a)
