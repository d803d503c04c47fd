"""Judging a model, or given embeddings, by a protocol; and comparing two of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsoftmax.comm import Comm
from mpsoftmax.data.ijb import is_ijb
from mpsoftmax.data.reid import layout_of
from mpsoftmax.data.shards import is_pattern
from mpsoftmax.evaluate.comparison import compare
from mpsoftmax.judge import identification, reid, retrieval, template, verification
from mpsoftmax.judge.options import Options
from mpsoftmax.judge.source import open_source
from mpsoftmax.train.evaluation import GLYPH_SETS, LABELLED

PROTOCOLS = {
    "verification": verification,
    "identification": identification,
    "retrieval": retrieval,
    "reid": reid,
    "template": template,
}
SCHEMA = 1
"""Of the report: higher where a field changes its meaning."""


@dataclass(frozen=True)
class Judgement:
    """What `mpsoftmax evaluate` reports."""

    text: str
    values: dict[str, Any]


def judge(
    model: str,
    data: str | None,
    comm: Comm,
    *,
    protocol: str | None = None,
    against: str | None = None,
    options: Options = Options(),  # noqa: B008, frozen
    trust_code: bool = False,
    skip_missing: bool = False,
) -> Judgement:
    """Figures of a model by a protocol; collective.

    Args:
        model: What `open_model` opens, or a .parquet file of embeddings.
        data: What the protocol reads; None for embeddings with labels.
        comm: The ranks that share the work.
        protocol: One of PROTOCOLS; None: what the data is for, where that is clear.
        against: A second model, compared with the first on the same items.
        options: Of the protocols.
        trust_code: Import the backbone a checkpoint names by package.module:callable.
        skip_missing: Leave out images that a file of embeddings lacks.

    Raises:
        ValueError: no such model or data, a damaged checkpoint, a malformed file or an option out of range.
    """
    paths = [model, *([against] if against is not None else [])]
    sources = [
        open_source(path, comm, trust_code=trust_code, skip_missing=skip_missing) for path in paths
    ]
    chosen = comm.together(lambda: chosen_protocol(protocol, data))
    comm.together(lambda: options.check_used(chosen))
    module: Any = PROTOCOLS[chosen]
    task = comm.together(lambda: module.open_task(data, sources, options))
    found = [module.judge(task, source, options, comm) for source in sources]
    values = {
        "schema": SCHEMA,
        **sources[0].describe(),
        "data": data,
        "protocol": chosen,
        **found[0].values,
    }
    text = [f"{values['model']} on {data or 'its labels'}", found[0].text]
    if against is not None:
        values["against"] = {**sources[1].describe(), **found[1].values}
        text += [f"{values['against']['model']} on {data or 'its labels'}", found[1].text]
        comparisons = {
            name: compare(one, found[1].outcomes[name], num_bootstrap=options.replicates(len(one)))
            for name, one in found[0].outcomes.items()
        }
        values["comparison"] = {name: one.as_dict() for name, one in comparisons.items()}
        text += [one.render() for one in comparisons.values()]
    return Judgement("\n".join(text), values)


def chosen_protocol(protocol: str | None, data: str | None) -> str:
    """The protocol asked for, or the one that the data is made for.

    Raises:
        ValueError: the data is made for several, or there is none and the protocol needs some.
    """
    chosen = protocol or protocol_for(data)
    if data is None and chosen not in ("identification", "retrieval"):
        raise ValueError(
            f"data: nothing to judge by {chosen}; allowed to be left out with identification, retrieval"
        )
    return chosen


def protocol_for(data: str | None) -> str:
    """The protocol that data is made for.

    Raises:
        ValueError: it is made for several.
    """
    if data is None or data in GLYPH_SETS:
        return "retrieval" if data is None else "verification"
    path = Path(data)
    if not path.exists():
        path = Path(data.partition("@")[0])  # a pair list, and where its images are
    if path.is_dir() and is_ijb(path):
        return "template"
    if (path.is_dir() or path.suffix == ".tar") and path.exists() and layout_of(path):
        return "reid"
    if path.suffix.lower() in LABELLED and not (path.exists() or is_pattern(data)):
        raise ValueError(f"data: {data!r}: no such file")
    if path.is_dir() or path.suffix.lower() in LABELLED or is_pattern(data):
        raise ValueError(
            f"protocol: {data!r} is a labelled set; allowed: --protocol identification, --protocol retrieval"
        )
    return "verification"
