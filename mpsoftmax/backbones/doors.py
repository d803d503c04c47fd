"""Doors to backbones from elsewhere: timm, transformers, any import path.

Inputs stay in [-1, 1] whatever statistics a net was pretrained with.
"""

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.backbones.execution import evaluation_mode
from mpsoftmax.import_path import imported


def open_timm(
    name: str,
    *,
    embedding_dim: int,
    image_size: tuple[int, int],
    activation_checkpointing: bool,
    options: dict[str, object],
) -> nn.Module:
    """A timm model whose classifier is the embedding; options go to ``timm.create_model``.

    Weights are random unless the option ``pretrained`` is true. Nets of fixed input size (vision
    transformers) are built for ``image_size``.

    Raises:
        ValueError: timm is not installed, has no such model, or the model cannot take the images.
    """
    timm = _import_optional("timm", f"timm:{name}")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5]
        raise ValueError(f"timm has no model {name!r}" + (f"; near: {near}" if near else ""))
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if config is not None and config.fixed_input_size:
        options = {"img_size": image_size, **options}
    model = _call(
        f"timm:{name}", timm.create_model, name, num_classes=embedding_dim, options=options
    )
    if activation_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError):
            raise ValueError(f"timm:{name} does not support activation_checkpointing") from None
    _check_output(model, f"timm:{name}", embedding_dim, image_size)
    return model


class _PooledTransformer(nn.Module):
    """A transformers vision model, its pooled output and a linear layer to the embedding."""

    def __init__(self, model: nn.Module, *, other_sizes: bool) -> None:
        super().__init__()
        self.model = model
        self.arguments: dict[str, bool] = {}
        takes = inspect.signature(model.forward).parameters
        if other_sizes and "interpolate_pos_encoding" in takes:  # images of another size
            self.arguments["interpolate_pos_encoding"] = True
        self.fc: nn.Module = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(pixel_values=images, **self.arguments)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:  # tokens [b, n, dim], or a map [b, dim, h, w]
            last = output.last_hidden_state
            pooled = last.mean(1) if last.dim() == 3 else last.mean((2, 3))
        return self.fc(pooled.flatten(1))


def open_transformers(
    name: str,
    *,
    embedding_dim: int,
    image_size: tuple[int, int],
    activation_checkpointing: bool,
    options: dict[str, object],
) -> nn.Module:
    """A vision model of Hugging Face transformers, pooled, with a linear layer to the embedding.

    ``name`` is a model type ("vit", "dinov2", "convnext": built from its default configuration), or
    a local folder or hub id, whose configuration is read; its weights only with the option
    ``pretrained: true``. Other options override fields of the configuration. Code that comes with
    a hub model is never run.

    Raises:
        ValueError: transformers is not installed, an option it refuses, or no model that turns
            images of this size into features.
    """
    label = f"transformers:{name}"
    transformers = _import_optional("transformers", label)
    if "trust_remote_code" in options:
        raise ValueError(f"{label}: option 'trust_remote_code' is not offered")
    fields = {key: value for key, value in options.items() if key != "pretrained"}
    pretrained = bool(options.get("pretrained", False))
    try:
        if pretrained:
            model = transformers.AutoModel.from_pretrained(name, **fields)
        else:
            config = _transformers_config(transformers, name, image_size, fields)
            model = transformers.AutoModel.from_config(config)
    except OSError as error:  # neither a folder nor on the hub, or the hub is out of reach
        raise ValueError(f"{label}: {error}") from error
    if activation_checkpointing:
        # the second name is the one of releases before 5.23
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    pooled = _PooledTransformer(model, other_sizes=pretrained)
    width = _probe(pooled, label, image_size).shape[1]
    pooled.fc = nn.Linear(width, embedding_dim)
    return pooled


def _transformers_config(
    transformers: ModuleType, name: str, image_size: tuple[int, int], fields: dict[str, object]
) -> Any:
    """The configuration of a model for images of this size, some fields replaced."""
    if name in transformers.CONFIG_MAPPING:
        config = transformers.AutoConfig.for_model(name)
    else:
        config = transformers.AutoConfig.from_pretrained(name)
    if hasattr(config, "image_size"):
        fields = {"image_size": list(image_size), **fields}
    for key, value in fields.items():
        if not hasattr(config, key):
            raise ValueError(f"transformers:{name}: its configuration has no option {key!r}")
        setattr(config, key, value)
    return config


def open_import_path(
    path: str,
    *,
    embedding_dim: int,
    image_size: tuple[int, int],
    activation_checkpointing: bool,
    options: dict[str, object],
) -> nn.Module:
    """Call ``package.module:callable`` with embedding_dim, image_size and the options.

    Raises:
        ValueError: no such module or callable, arguments it does not take, activation
            checkpointing asked for, or a result that is not a backbone.
    """
    if activation_checkpointing:
        raise ValueError(
            f"activation_checkpointing is up to the callable for {path!r}: pass it in the options"
        )
    make = _import_callable(path)
    model = _call(path, make, embedding_dim=embedding_dim, image_size=image_size, options=options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{path} must return a torch.nn.Module, got {type(model).__name__}")
    _check_output(model, path, embedding_dim, image_size)
    return model


def _import_optional(package: str, label: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"backbone {label!r} needs the package {package}: pip install {package} ({error})"
        ) from error


def _import_callable(path: str) -> Callable[..., object]:
    found = imported("backbone", path)
    if not callable(found):
        raise ValueError(f"backbone {path!r} is not callable but {type(found).__name__}")
    return found


def _call(
    label: str,
    make: Callable[..., Any],
    *args: object,
    options: dict[str, object],
    **kwargs: object,
) -> Any:
    """Call ``make``; an argument that it does not know becomes a ValueError naming it."""
    clash = sorted(options.keys() & kwargs.keys())
    if clash:
        raise ValueError(f"{label}: {clash[0]!r} is set by the configuration, not by an option")
    try:
        return make(*args, **kwargs, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"{label}: {error}; options given: {sorted(options)}") from error


def _probe(model: nn.Module, label: str, image_size: tuple[int, int]) -> Tensor:
    """Run two black images through ``model`` and return its output."""
    height, width = image_size
    first = next(model.parameters(), torch.empty(0))
    images = torch.zeros(2, 3, height, width, dtype=first.dtype, device=first.device)
    with evaluation_mode(model), torch.no_grad():
        try:
            return model(images)
        except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
            raise ValueError(
                f"{label} cannot take images of image_size {height} x {width}: {error}"
            ) from error


def _check_output(
    model: nn.Module, label: str, embedding_dim: int, image_size: tuple[int, int]
) -> None:
    output = _probe(model, label, image_size)
    if not isinstance(output, Tensor):
        raise ValueError(f"{label} must return one tensor, got {type(output).__name__}")
    if output.shape != (2, embedding_dim):
        raise ValueError(
            f"{label} must return [b, {embedding_dim}], got {list(output.shape)} for b = 2"
        )
