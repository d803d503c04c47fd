"""Hand-worked values of every formula, through the whole head, in two dimensions.

A sample lies along e1 with norm a; a class with cosine z to it has the row (z, sqrt(1 - z^2)), so that every
cosine is chosen, and the gradient by the feature (f1, f2) is

    df1 = dL/da                                                                 the radial part
    df2 = (Phi_t sqrt(1 - t^2) + sum_j Phi_l pi_j g'_j sqrt(1 - z_j^2)) / a     the tangential part

with pi_j = e^{g_j - l}. Figures: mpmath at 200 digits from these formulas and those above each test, 20
of them pasted; nothing comes from the package. Usual negatives: Z = 0.28, -0.6, 0 with s = 16, hence
l = log(e^4.48 + e^-9.6 + 1).
"""

import math

import pytest
import torch

import mpsoftmax as mp

Z = (0.28, -0.6, 0.0)
NO_MOVE = mp.RowSGD(lr=0.0, momentum=0.0, weight_decay=0.0)


def head_of(objective, rows, **kwargs):
    """A float64 head with these rows [[w1, w2], ...] that do not move."""
    dtypes = {"compute_dtype": torch.float64, "row_dtype": torch.float64}
    optimizer = {} if "weights" in kwargs else {"optimizer": NO_MOVE}
    head = mp.ModelParallelSoftmax(
        2, len(rows), objective=objective, **{**dtypes, **optimizer, **kwargs}
    )
    head.load_rows(torch.arange(len(rows)), torch.tensor(rows, dtype=torch.float64))
    return head


def row(z):
    """The row of cosine z with e1."""
    return [z, math.sqrt(1 - z * z)]


def along(*norms):
    """Features along e1."""
    return torch.tensor([[a, 0.0] for a in norms], dtype=torch.float64, requires_grad=True)


def close(value, expected, rtol=1e-12, atol=1e-13):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    value = torch.as_tensor(value).detach().double()
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)


def watched(head, name, expected):
    """A statistic: float32."""
    close(head.last_stats[name], expected, rtol=1e-6, atol=1e-7)


def check(objective, t, others, loss, tangent, radial=0.0, a=1.0, **kwargs):
    """One sample of class 0 against classes 1, 2, ... of these cosines."""
    head = head_of(objective, [row(z) for z in (t, *others)], **kwargs)
    features = along(a)
    value = head(features, torch.tensor([0]))
    value.backward()
    close(value, loss)
    close(features.grad, [[radial, tangent]])
    return head


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


# CosFace 16, 0.35. A negative above 0.4 has logit 0 and no gradient, yet adds e^0; the target never does.
@pytest.mark.parametrize(
    ("t", "negatives", "filtered", "loss", "tangent"),
    [
        (0.6, (0.28, 0.8, -0.6), 1, 0.96865214262142382195, 1.4814467080616063179),
        (0.6, (0.8, 0.6, 0.5), 3, 0.053490449705933508271, -0.66668807900780026648),
        (0.6, (0.28, -0.6), 0, 0.96167534857751155978, 1.5814338095220194555),
        (0.8, (0.28, -0.6), 0, 0.063795875124006340116, 0.3559881005987687757),
    ],
)
def test_noise_filter(t, negatives, filtered, loss, tangent):
    noise = mp.NoiseFilter(0.4)
    head = check(mp.CosFace(16.0, 0.35), t, negatives, loss, tangent, negatives=noise)
    watched(head, "filtered_negatives", filtered)


# Classes 0-2, 3-5 and 6-7; the sample's own basket has z = 0.28, -0.6, the others 0.8, 0.2, 0 and 0.5, -0.28.
BASKETS = (0.6, 0.28, -0.6, 0.8, 0.2, 0.0, 0.5, -0.28)
EVERYONE = (8.808657016638574667, -3.162977866694703306)
OWN = (0.96167534857751155978, 1.5814338095220194555)
WITHOUT_08_05 = (1.1262040521835934444, 1.7798380167504433051)
WITHOUT_08 = (4.0549465162103194472, 1.0950841709954993101)
WITHOUT_02 = (0.96873093521629931168, 1.5927631256515671531)  # nor 0.8 nor 0.5
RULES = {
    "all_distinct": (mp.AllDistinct(), EVERYONE, 0),
    "own": (mp.OwnBasket(), OWN, 5),
    "R1 below 0.45": (mp.Threshold(0.45), WITHOUT_08_05, 2),
    "R1 below 0.1": (mp.Threshold(0.1), WITHOUT_02, 3),
    "R2 below 0.4": (mp.TargetRelative(0.2), WITHOUT_08_05, 2),
    "R2 below 0.15": (mp.TargetRelative(0.45), WITHOUT_02, 3),
    "R3 the nearest if above 0.6": (mp.TopOne(0.6), WITHOUT_08, 1),
    "R3 the nearest if above 0.3": (mp.TopOne(0.3), WITHOUT_08_05, 2),
    "R4 the nearest": (mp.TopK(1), WITHOUT_08_05, 2),
    # leaves 0 of the second basket, nothing of the third
    "R4 the two nearest": (mp.TopK(2), (0.96865214262142382195, 1.5926869115458638347), 4),
    "R5 0.5": (mp.Hardest(1, mp.TopOne(0.6)), (4.0468025680913152874, 1.0804129247330243577), 4),
    "R5 0.5, 0.2": (
        mp.Hardest(2, mp.TopOne(0.6)), (4.0546253385922404059, 1.0944103144532652281), 3,
    ),
    "R5 0.8, 0.5": (
        mp.Hardest(2, mp.AllDistinct()), (8.8085871012612904905, -3.1634010252216847202), 3,
    ),
    "known 0 = 3": (mp.Overlap([(3, 0)]), WITHOUT_08, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_baskets(name):
    """CosFace 16, 0.35 over the negatives that the rule leaves."""
    rule, expected, rejected = RULES[name]
    baskets = mp.Baskets([3, 3, 2], rule=rule)
    head = check(mp.CosFace(16.0, 0.35), BASKETS[0], BASKETS[1:], *expected, baskets=baskets)
    if name != "all_distinct":  # nothing is looked at
        watched(head, "rejected_share", rejected / 5)


def test_warm_up_and_margins():
    """Own basket alone in step 0; the second basket's margin is 0.1."""
    everyone = mp.Threshold(0.9)
    baskets = mp.Baskets([3, 3, 2], rule=everyone, warmup=1, margins=[None, 0.1, None])
    head = head_of(mp.CosFace(16.0, 0.35), [row(z) for z in BASKETS], baskets=baskets)
    label = torch.tensor([0])
    loss = head(along(1.0), label)
    loss.backward()
    close(loss, OWN[0])
    head.step()
    close(head(along(1.0), label), EVERYONE[0])
    # 16 (0.6 - 0.1) against l = log(e^4.48 + e^-9.6)
    swapped = [row(z) for z in (0.8, 0.2, 0.0, 0.6, 0.28, -0.6, 0.5, -0.28)]
    head = head_of(mp.CosFace(16.0, 0.35), swapped, baskets=baskets)
    close(head(along(1.0), torch.tensor([3])), 0.029169850773176523802)


def test_no_negatives_at_all():
    """One class, a basket of one class: log(1 + 0 e^-phi) = 0 and no gradient, whatever the objective."""
    for objective in (mp.ArcFace(), mp.CurricularFace(), mp.NPCFace(), mp.MVSoftmax()):
        check(objective, 0.6, (), 0.0, 0.0)
        baskets = mp.Baskets([1, 2], rule="own")
        check(objective, 0.6, (0.28, -0.6), 0.0, 0.0, baskets=baskets)
    check(mp.SphereFace(), 0.6, (), 0.0, 0.0, 0.0, a=7.0)
    # MagFace keeps its regulariser: 35 (60 / 110^2 + 1 / 60), slope 35 (110^-2 - 60^-2)
    check(mp.MagFace(), 0.6, (), 0.75688705234159779614, 0.0, -0.0068296602387511478421, a=60.0)


def test_sub_centres():
    """The nearest row speaks: t = max(0.28, 0.6), negatives max(0.28, 0.8) and max(-0.6, 0)."""
    head = mp.ModelParallelSoftmax(
        2, 3, objective=mp.CosFace(16.0, 0.35), weights=mp.SubCentres(2), compute_dtype=torch.float64,
        row_dtype=torch.float64, optimizer=mp.RowSGD(lr=1.0, momentum=0.0, weight_decay=0.0),
    )  # fmt: skip
    rows = [[0.28, 0.6], [0.28, 0.8], [0.0, -0.6]]
    rows = torch.tensor([[row(z) for z in pair] for pair in rows], dtype=torch.float64)
    head.load_rows(torch.arange(3), rows)
    features = along(1.0)
    loss = head(features, torch.tensor([0]))
    loss.backward()
    close(loss, 8.800153482068692196)
    close(features.grad, [[0.0, -3.1995000619526479202]])
    head.step()
    moved = (head.class_rows(torch.arange(3)) - rows).abs().sum(2) > 0
    assert moved.tolist() == [[False, True], [False, True], [True, False]]


def test_dsoftmax_b_counts_the_inter_part_of_the_drawn():
    """t = 0.6 and 0.8 (classes 0 and 1), one of two samples drawn: mean of sp(30 (0.9 - t)) + its sp(l)."""
    rows = [row(z) for z in (0.6, 0.8, 0.28)]
    head = head_of(mp.DSoftmax(30.0, 0.9), rows, candidates=mp.DSoftmaxB(0.5))
    loss = head(along(1.0, 1.0), torch.tensor([0, 1]))
    (chosen,) = head.last_chosen.tolist()
    other = math.log(math.exp(24.0) + math.exp(8.4)) if chosen == 0 else math.log(
        math.exp(18.0) + math.exp(8.4)
    )  # fmt: skip
    close(loss, (9.0001234021897232588 + 3.0485873515737420588) / 2 + math.log1p(math.exp(other)))


@pytest.mark.parametrize(
    ("rule", "kind", "expected"),
    [
        # mean of (0.6, 0.8) and (0, 1) is (0.3, 0.9); half of (1, 0) and half of it
        ("ema", "normalised", [0.65, 0.45]),
        # (1, 0) - 0.5 ((0.4, -0.8) + (1, -1)) / 3
        ("center_loss", "normalised", [1 - 0.7 / 3, 0.3]),
        # mean of (3, 4) and (0, 2) is (1.5, 3)
        ("ema", "raw", [1.25, 1.5]),
        # (1, 0) - 0.5 ((-2, -4) + (1, -2)) / 3
        ("center_loss", "raw", [1 + 0.5 / 3, 1.0]),
        ("exact", "normalised", [1.0, 0.0]),
    ],
)
def test_class_centres(rule, kind, expected):
    """Class 0's first batch is (1, 0): that becomes its centre; then (3, 4) and (0, 2) arrive."""
    centres = mp.ClassCentres(rule=rule, alpha=0.5, features=kind)
    head = mp.ModelParallelSoftmax(
        2, 3, objective=mp.NormFace(16.0), weights=centres, compute_dtype=torch.float64,
        row_dtype=torch.float64,
    )  # fmt: skip
    for points in ([[1.0, 0.0]], [[3.0, 4.0], [0.0, 2.0]]):
        features = torch.tensor(points, dtype=torch.float64, requires_grad=True)
        loss = head(features, torch.zeros(len(points), dtype=torch.int64))
        close(loss, 0.0)  # nobody else was ever seen: no negatives
        loss.backward()
        head.step()
    close(head.class_rows(torch.tensor([0])), [expected])


# Row 0 is -e1, the others e1; a sample (z, sqrt(1 - z^2)) of class 0 has t = -z and 9,999,999 negatives at z:
# l = 64 z + log(1e7 - 1), loss = log(1 + e^{l + 64 z}), gradient 2 q 64 sqrt(1 - z^2) across.
TEN_MILLION = {
    1.0: (144.11809555095831479, 0.0),
    -0.14: (0.15270768305276460484, 17.948756166018213505),
    -0.5: (1.6038107301675487981e-21, 1.777844269039573535e-19),
    -1.0: (2.5722091154214775626e-49, 0.0),
}


@pytest.mark.parametrize(
    ("dtype", "rtol", "rtol_gradient"),
    # float32: one sample's product with 1e7 equal rows accumulates rounding errors, 2 % here; autograd
    # of the plain formula is 12 % off
    [(torch.float32, 1e-4, 5e-2), (torch.float64, 1e-8, 1e-8)],
    ids=["float32", "float64"],
)
def test_ten_million_classes(dtype, rtol, rtol_gradient):
    """Scale 64: neither overflow at one end nor loss of digits at the other."""
    num_classes = 10_000_000
    head = mp.ModelParallelSoftmax(
        2, num_classes, objective=mp.NormFace(64.0), optimizer=NO_MOVE, e_budget_bytes=0,
        compute_dtype=dtype,
    )  # fmt: skip
    rows = torch.tensor([[1.0, 0.0]]).repeat(num_classes, 1)
    rows[0, 0] = -1.0
    head.load_rows(torch.arange(num_classes), rows)
    del rows
    for z, (expected, across) in TEN_MILLION.items():
        features = torch.tensor([[z, math.sqrt(1 - z * z)]], dtype=dtype, requires_grad=True)
        loss = head(features, torch.tensor([0]))
        loss.backward()
        close(loss, expected, rtol=rtol, atol=1e-44)
        gradient = features.grad.norm().item()
        assert abs(gradient - across) <= rtol_gradient * across + 1e-44
        head.zero_grad()
