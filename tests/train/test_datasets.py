"""Several datasets in the configuration: what is accepted, what is refused and how, and what is opened."""

import re

import numpy as np
import pytest

from mpsoftmax.config import from_tree, load, to_tree
from mpsoftmax.data.convert import convert
from mpsoftmax.data.mixture import MixtureOrder
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.data.union import Union
from mpsoftmax.head.baskets import Baskets
from mpsoftmax.head.mining import Hardest, OwnBasket, Threshold, TopOne
from mpsoftmax.train.build import build_head, check_parts
from mpsoftmax.train.datasets import build_order, open_training_images, sizes_of
from mpsoftmax.train.parts import build_baskets

TWO = "data.train=[a.tar, b.tar]"


def config(*overrides):
    return load(None, ["train.steps=10", "backbone.name=small", *overrides])


def test_names_and_mappings_and_a_lone_path():
    given = "data.train=[x/web.rec, {path: y/web.rec, weight: null}, {path: glyphs, name: drawn}]"
    chosen = config(given).data
    assert [(d.path, d.name) for d in chosen.datasets] == [
        ("x/web.rec", "web-1"),
        ("y/web.rec", "web-2"),
        ("glyphs", "drawn"),
    ]
    alone = config("data.train=faces.tar", "data.under=train").data
    assert [(d.path, d.under) for d in alone.datasets] == [("faces.tar", "train")]


def test_a_list_survives_the_round_trip():
    chosen = config(
        "data.train=[a.tar, {path: b, weight: 1e-1, margin: 0.2}]".replace(
            "a.tar", "{path: a, weight: 3}"
        )
    )
    assert from_tree(to_tree(chosen)) == chosen
    assert [d.weight for d in chosen.data.datasets] == [3.0, 0.1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=[a, {path: b, weihgt: 2}]"], "data.train[1].weihgt: unknown key; did you mean"),
        (["data.train=[a, {weight: 2}]"], "data.train[1].path: missing"),
        (["data.train=[{path: a, weight: 0}, b]"], "data.train[0].weight: 0.0; allowed: a positive"),
        (["data.train=[{path: a, weight: .inf}, b]"], "data.train[0].weight: inf; allowed: a positive"),
        (["data.train=[{path: a, weight: 2}, b]"], "data.train: weights [2.0, None]; allowed: a weight for"),
        (["data.train=[{path: a, weight: two}, b]"], "data.train[0].weight: 'two'; allowed: a number"),
        (["data.train=[{path: a, part: 3/2}, b]"], "data.train[0].part: '3/2'; allowed: k/n"),
        (["data.train=[{path: a, min_images_per_class: 0}]"], "data.train[0].min_images_per_class: 0"),
        (["data.train=[{path: a, name: x}, {path: b, name: x}]"], "datasets named ['x', 'x']; allowed"),
        (["data.train={path: a, margin: 0.3}"], "data.train[0].margin: 0.3; allowed only beside other"),
        (["data.train=[]"], "data.train: an empty list"),
        ([TWO, "data.under=x"], "data.under: 'x'; allowed only where data.train is one path"),
        (["head.baskets.rule=own"], "head.baskets: given, but data.train is 'glyphs'; allowed: null, or"),
        (["data.train=[a]", "head.linking.every=5"], "head.linking: given, but data.train is ('a',)"),
        ([TWO, "head.baskets.rul=own"], "head.baskets.rul: unknown key; did you mean 'rule'?"),
        ([TWO, "head.baskets.warmup=-1"], "head.baskets.warmup: -1; allowed: at least 0"),
        ([TWO, "head.baskets.duplicates=2"], "head.baskets.duplicates: 2.0; allowed: -1 <= value <= 1"),
        ([TWO, "head.linking.every=0"], "head.linking.every: 0; allowed: at least 1"),
        ([TWO, "head.linking.doubt=1"], "head.linking.doubt: 1.0; allowed: 0 <= value < 1"),
    ],
)  # fmt: skip
def test_refusals_name_the_path(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([TWO, "head.baskets.rule=topone"], "head.baskets.rule: kind 'topone'; did you mean 'top_one'?"),
        ([TWO, "head.baskets.rule={kind: top_one, tua: 1}"], "head.baskets.rule.tua: unknown key"),
        ([TWO, "head.baskets.rule={kind: top_one, tau: 4}"], "head.baskets.rule: TopOne.tau: 4.0"),
        (
            [TWO, "head.baskets.rule={kind: hardest, after: {kind: threshold, tua: 1}}"],
            "head.baskets.rule.after.tua: unknown key; did you mean 'tau'?",
        ),
        ([TWO, "head.baskets.rule={kind: hardest, after: own}"], "head.baskets.rule: Hardest.after: OwnB"),
        ([TWO, "head.baskets.rule={kind: own, after: own}"], "head.baskets.rule.after: unknown key"),
        ([TWO, "head.baskets.rule=top_k", "head.candidates=uniform"], "head: baskets.rule: TopK"),
        ([TWO, "head.baskets.rule={kind: known, pairs: no.csv}"], "head.baskets.rule.pairs: no.csv: cannot"),
        (["data.train=[{path: a, margin: 9}, b]"], "data.train[0].margin: 9.0: ArcFace.margin: 9.0"),
        (
            ["data.train=[a, {path: b, margin: .1}]", "head.objective=npcface"],
            "data.train[1].margin: 0.1: baskets.margins",
        ),
        ([TWO, "head.linking={}", "head.weights=class_centres"], "head.linking: given with head.weights="),
        (["head.weights=class_centres", "head.optimizer=sgd"], "head.optimizer: 'sgd'; allowed with"),
        (["head.weights=class_centres", "head.untouched=lazy"], "head: untouched: 'lazy' with weights"),
        (["head.weights={kind: sub_centres, learned: true}"], "head.weights.learned: unknown key"),
        (["head.negatives={kind: noise_filter, threshold: 3}"], "head.negatives: NoiseFilter.threshold: 3.0"),
        (["head.candidates=dsoftmax_b"], "head: candidates: DSoftmaxB"),
    ],
)  # fmt: skip
def test_parts_are_refused_before_anything_starts(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_parts(config(*overrides))


def test_rules_are_built_from_names_and_nested_mappings():
    assert build_baskets(config("data.train=a"), [5]) is None
    assert build_baskets(config(TWO), [5, 6]) == Baskets([5, 6], TopOne())
    nested = "head.baskets.rule={kind: hardest, num: 7, after: {kind: threshold, tau: 0.4}}"
    assert build_baskets(config(TWO, nested), [5, 6]).rule == Hardest(7, Threshold(0.4))
    margins = "data.train=[{path: a, margin: 0.3}, b]"
    built = build_baskets(config(margins, "head.baskets={rule: own, warmup: 9}"), [5, 6])
    assert built == Baskets([5, 6], OwnBasket(), 9, (0.3, None))


def test_class_centres_have_no_optimizer():
    head = build_head(config("head.weights=class_centres"), [5], 1, "cpu")
    assert head.row_rule.lr == 0
    assert build_head(config("train.optimizer.lr=0.02"), [5], 1, "cpu").row_rule.lr == 0.02


def files(folder):
    """Two sets of unequal size with three classes of the same name."""
    one = convert(Synthetic(num_classes=3, images_per_class=4, size=(8, 8)), folder / "one")
    two = Synthetic(num_classes=7, images_per_class=2, size=(8, 8), seed=1)
    return one.path, convert(two, folder / "two.tar").path


def test_datasets_are_opened_side_by_side(tmp_path):
    one, two = files(tmp_path)
    chosen = config(
        f"data.train=[{one}, {{path: {one}, part: 2/3, min_images_per_class: 1}}, {two}]",
        "data.min_images_per_class=2",
    )
    images = open_training_images(chosen)
    assert isinstance(images, Union)
    assert sizes_of(images) == (3, 3, 7)
    assert [len(part) for part in images.parts] == [12, 3, 14]
    assert images.names == ["one-1", "one-2", "two"]
    assert images.class_names[0] == "one-1:class-000000"
    assert images.class_names[12] == "class-000006"
    assert images.name(12).startswith(f"one-2: {one}")
    order = build_order(chosen, images)
    assert isinstance(order, MixtureOrder)
    assert (np.sort(order.samples(0, 29)) == np.arange(29)).all()


def test_weights_are_shares_of_the_samples(tmp_path):
    one, two = files(tmp_path)
    spec = f"data.train=[{{path: {one}, weight: 1}}, {{path: {two}, weight: 3}}]"
    for order in ("images", "classes", "pk"):
        chosen = config(spec, f"data.order={order}", "data.images_per_class=2")
        images = open_training_images(chosen)
        stream = build_order(chosen, images).samples(0, 800)
        assert (images.labels[stream] < 3).sum() == 200, order


def test_a_dataset_that_cannot_be_opened_is_named(tmp_path):
    one, _ = files(tmp_path)
    with pytest.raises(ValueError, match=r"data\.train\[1\]: data 'nothing': no such file"):
        open_training_images(config(f"data.train=[{one}, nothing]"))
    with pytest.raises(ValueError, match=r"data\.train\[1\]: min_images is 5: no class"):
        open_training_images(
            config(f"data.train=[{one}, {{path: {one}, min_images_per_class: 5}}]")
        )
    with pytest.raises(ValueError, match=r"data\.train\[0\]\.under: 'x'; allowed only where"):
        open_training_images(config("data.train=[{path: synthetic, under: x}, b]"))
