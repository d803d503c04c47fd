"""Vision transformers for faces: ViT-T/S/B/L in arcface_torch's structure and parameter names.

insightface ``recognition/arcface_torch/backbones/vit.py``: patches of 9 pixels, no class token, no
bias on q, k, v, ReLU6; all patch features together, not an average, go through the embedding head.
In training a share of the patches is left out of the blocks and replaced by a learned token behind
them (``mask_ratio``), and residual branches are dropped per sample (``drop_path``).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsoftmax.backbones.execution import full_precision, run_block
from mpsoftmax.backbones.options import rate, whole_number

SIZES: dict[str, dict[str, int | float]] = {
    "vit_t": {"dim": 256, "depth": 12, "drop_path": 0.1, "mask_ratio": 0.1},
    "vit_s": {"dim": 512, "depth": 12, "drop_path": 0.1, "mask_ratio": 0.1},
    "vit_b": {"dim": 512, "depth": 24, "drop_path": 0.1, "mask_ratio": 0.1},
    "vit_l": {"dim": 768, "depth": 24, "drop_path": 0.05, "mask_ratio": 0.05},
}
_NUM_HEADS = 8


class _PatchEmbedding(nn.Module):
    """[b, 3, H, W] -> [b, n, dim]; pixels beyond the last whole patch are not seen."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, _NUM_HEADS, dim // _NUM_HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(mixed.transpose(1, 2).reshape(b, n, dim))


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu6(self.fc1(x)))


class _Block(nn.Module):
    """[b, n, dim] -> [b, n, dim]."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """In training, zero a sample's branch at the rate ``drop_path``; the mean is kept."""
        if not self.training or self.drop_path == 0:
            return branch
        kept = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(kept).div_(kept)


class VisionTransformer(nn.Module):
    """Images float [b, 3, H, W] in [-1, 1] -> raw embeddings float [b, embedding_dim].

    Args:
        dim: width of the tokens, a multiple of the 8 heads.
        depth: number of blocks.
        embedding_dim: width of the embedding.
        image_size: (H, W) in pixels, at least one patch; what exceeds a whole number of patches
            (4 pixels of 112 at the default) is cut off at the right and the bottom.
        activation_checkpointing: recompute each block in backward instead of keeping it.
        patch_size: side of a patch in pixels.
        drop_path: rate of dropped residual branches in the last block; linear from 0 in the first.
        mask_ratio: share of patches masked in training.

    Raises:
        ValueError: an option or a size outside what is said here.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        embedding_dim: int,
        image_size: tuple[int, int],
        activation_checkpointing: bool = False,
        patch_size: int = 9,
        drop_path: float,
        mask_ratio: float,
    ) -> None:
        super().__init__()
        patch_size = whole_number("patch_size", patch_size)
        num_patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
        if num_patches == 0:
            raise ValueError(
                f"image_size must hold at least one patch of {patch_size} x {patch_size} pixels, "
                f"got {image_size[0]} x {image_size[1]}"
            )
        last_drop = rate("drop_path", drop_path)
        self.activation_checkpointing = activation_checkpointing
        self.num_kept = int(num_patches * (1 - rate("mask_ratio", mask_ratio)))
        if self.num_kept == 0:
            raise ValueError(f"mask_ratio {mask_ratio} masks all {num_patches} patches")
        self.patch_embed = _PatchEmbedding(dim, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, dim))
        self.blocks = nn.ModuleList(
            _Block(dim, last_drop * i / max(depth - 1, 1)) for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(dim * num_patches, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
            nn.Linear(dim, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=2e-5),
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return raw embeddings; see the class for shapes."""
        x = self.patch_embed(images) + self.pos_embed
        order = None
        if self.training and self.num_kept < x.shape[1]:
            order = torch.rand(x.shape[:2], device=x.device).argsort(1)  # [b, n], patches shuffled
            x = x.gather(1, order[:, : self.num_kept, None].expand(-1, -1, x.shape[2]))
        for block in self.blocks:
            x = run_block(block, x, checkpointing=self.activation_checkpointing)
        with full_precision(x):
            x = self.norm(x.to(self.norm.weight.dtype))
            if order is not None:
                x = self._with_mask_tokens(x, order)
            return self.feature(x.flatten(1))

    def _with_mask_tokens(self, x: Tensor, order: Tensor) -> Tensor:
        """Put kept patches [b, num_kept, dim] back into their places, the token elsewhere."""
        b, n = order.shape
        tokens = self.mask_token.expand(b, n - x.shape[1], -1)
        places = order.argsort(1)[:, :, None].expand(-1, -1, x.shape[2])
        return torch.cat([x, tokens], 1).gather(1, places)
