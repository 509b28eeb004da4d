"""The style, content and Gram terms on VGG19's features (`vgg19`).

All terms share one pass of the network: call `VGG19Features` on the render once per step and pass the dict to
`StyleLoss.blended`, `feature_difference` and `gram_loss`. The features of targets have no gradient and do not change
within a round; `StyleTargets` caches them.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from style_nerf2nerf.swd import Windows, grid_windows, random_directions, sliced_wasserstein_mixture
from style_nerf2nerf.vgg19 import Features, VGG19Features

__all__ = ["StyleLoss", "StyleTargets", "VGG19Features", "feature_difference", "feature_memory", "gram_loss"]


class StyleLoss:
    """Mean over layers of the sliced Wasserstein distance between features (Style-NeRF2NeRF, section 4.3).

    Deliberately not an `nn.Module`, so that a pipeline that refers to it does not write VGG19 into its checkpoints.

    Args:
        features: The network, whose layers are those of the loss.
        num_directions: Random directions for each layer and call; None: as many as the layer has channels.
        generator: Source of the directions; None: torch's global generator on the features' device.
        layer_weights: Weight of each layer's distance in the mean (0 for missing layers); None: equal weights.
        windows: Numbers of windows per side, over which the distance is averaged: (1,) compares whole images, which is
            the paper's own distance; (1, 2, 4) also compares quarters and sixteenths with the same part of the target.
    """

    def __init__(
        self,
        features: VGG19Features,
        num_directions: int | None = None,
        generator: torch.Generator | None = None,
        layer_weights: Mapping[str, float] | None = None,
        windows: Sequence[int] = (1,),
    ) -> None:
        if not windows or min(windows) < 1:
            raise ValueError(f"A style loss needs windows, at least one a side, got {tuple(windows)}.")
        if num_directions is not None and num_directions < 1:
            raise ValueError(f"A style loss needs at least one direction, got {num_directions}.")
        chosen = dict.fromkeys(features.layers, 1.0) if layer_weights is None else dict(layer_weights)
        if set(chosen) - set(features.layers) or min(chosen.values(), default=0) < 0 or not any(chosen.values()):
            raise ValueError(f"Layer weights must be at least 0, not all 0, for layers among {features.layers}.")
        self.features = features
        self.num_directions = num_directions
        self.generator = generator
        self.layer_weights = {name: chosen[name] for name in features.layers if chosen.get(name)}
        self.windows = tuple(windows)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Features:
        """Compute features of target images, without a gradient."""
        return self.features(images)

    def __call__(
        self,
        rendered: Float[Tensor, "batch 3 height width"],
        target: Float[Tensor, "batch 3 _ _"] | Features,
        mask: Float[Tensor, "batch 1 _ _"] | None = None,
        target_mask: Float[Tensor, "batch 1 _ _"] | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the style distance of rendered images to target images (of any size) or their features (`encode`).

        The same as `blended` with one target, with less memory: each layer's features are released after use.
        """
        target_features = self.encode(target) if isinstance(target, Tensor) else target
        return self._mean(self._layers(self.features(rendered), [(1.0, target_features)], mask, target_mask))

    def blended(
        self,
        rendered: Features,
        targets: Sequence[tuple[float, Features]],
        mask: Float[Tensor, "batch 1 _ _"] | None = None,
        target_mask: Float[Tensor, "batch 1 _ _"] | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the weighted sum of the distances to several styles, whose minimum is their Wasserstein barycentre.

        The rendered features are projected and sorted once for all styles, on the same directions. Weights are used as
        given; a style of weight 0 is skipped, so that weights 1 and 0 give exactly the single style.

        Args:
            rendered: Features that carry the gradient.
            targets: Pairs (weight >= 0, features), e.g. from `StyleTargets`.
            mask: In [0, 1], of any size: only cells covered by at least one half take part. An image without such a
                cell in a layer is omitted from that layer.
            target_mask: Mask of all targets; None: `mask`, for targets aligned with the render.

        Raises:
            ValueError: If shapes or weights do not fit, or the mask selects nothing in any layer.
        """
        return self._mean(self._layers(dict(rendered), targets, mask, target_mask))

    def distances(
        self,
        rendered: Features,
        target: Features,
        mask: Float[Tensor, "batch 1 _ _"] | None = None,
        target_mask: Float[Tensor, "batch 1 _ _"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the unweighted distance of each layer, for metrics; layers without pixels in the masks are absent."""
        return self._layers(dict(rendered), [(1.0, target)], mask, target_mask)

    def _mean(self, distances: Mapping[str, Tensor]) -> Tensor:
        if not distances:
            raise ValueError("The mask selects nothing, neither in the finest nor in the coarsest layer.")
        weights = {name: self.layer_weights[name] for name in distances}
        return torch.stack([weights[name] * d for name, d in distances.items()]).sum() / sum(weights.values())

    def _layers(
        self,
        rendered: Features,
        targets: Sequence[tuple[float, Features]],
        mask: Tensor | None,
        target_mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """Compute each layer's distance; empties `rendered`, to keep only features or gradient of a layer in memory."""
        target_mask = mask if target_mask is None else target_mask
        distances = {}
        for name in self.layer_weights:
            feature = rendered.pop(name)
            channels = feature.shape[1]
            directions = random_directions(
                self.num_directions or channels, channels, generator=self.generator, device=feature.device
            )
            weights = [weight for weight, _ in targets]
            features = [feature, *(target[name].to(feature.device) for _, target in targets)]
            if any(len(f) != len(feature) for f in features):
                raise ValueError(
                    f"There must be as many target images as rendered ones, got {[len(f) for f in features]}."
                )
            masks = [mask] + [target_mask] * len(targets)
            if mask is None and target_mask is None:
                groups = [
                    ([f.flatten(2) for f in features], self._windows([f.shape[2:] for f in features], feature.device))
                ]
            else:
                groups = self._masked_groups(features, masks)
            found = [
                sliced_wasserstein_mixture(a, list(zip(weights, bs)), directions, windows)
                for (a, *bs), windows in groups
                if windows
            ]
            if found:
                distances[name] = torch.stack(found).mean()
        return distances

    def _windows(self, sizes: Sequence[torch.Size], device: torch.device) -> list[Windows]:
        """Build the windows for images of these heights and widths, the first of which is the rendered one."""
        found = []
        for along_side in dict.fromkeys(min(count, *(min(size) for size in sizes)) for count in self.windows):
            cells = [None if along_side == 1 else _grid_cells(*size, along_side, device) for size in sizes]
            found.append((along_side, cells))
        return [Windows(1 / len(found), own, tuple(theirs)) for _, (own, *theirs) in found]

    def _masked_groups(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> list[tuple[list[Tensor], list[Windows]]]:
        """Compute masked distances image by image, because the numbers of pixels inside the masks differ.

        A window is weighted by its number of rendered pixels; a window that is empty in either image is omitted.
        """
        device = features[0].device
        chosen = [_selected(feature, mask) for feature, mask in zip(features, masks)]
        groups = []
        for index in range(len(features[0])):
            windows = []
            inside = [each[index] for each in chosen]
            for size in self._windows([feature.shape[2:] for feature in features], device):
                parts = []
                for window in range(1 if size.own is None else len(size.own)):
                    cells = [
                        inside_one if cells is None else cells[window][torch.isin(cells[window], inside_one)]
                        for cells, inside_one in zip((size.own, *size.theirs), inside)
                    ]
                    if all(len(each) for each in cells):
                        parts.append(cells)
                total = sum(len(own) for own, *_ in parts)
                windows += [
                    Windows(size.weight * len(own) / total, own[None], tuple(each[None] for each in theirs))
                    for own, *theirs in parts
                ]
            groups.append(([feature[index : index + 1].flatten(2) for feature in features], windows))
        return groups


@functools.lru_cache(maxsize=64)
def _grid_cells(height: int, width: int, along_side: int, device: torch.device) -> Int[Tensor, "windows cells"]:
    return grid_windows(height, width, along_side).to(device)


def _selected(
    feature: Float[Tensor, "batch channels height width"], mask: Tensor | None
) -> list[Int[Tensor, " cells"]]:
    """Find the cells of each image inside a mask, as indices into the flattened image."""
    if mask is None:
        return [torch.arange(feature[0, 0].numel(), device=feature.device)] * len(feature)
    if mask.shape[:2] != (feature.shape[0], 1):
        raise ValueError(f"A mask must be ({feature.shape[0]}, 1, height, width), got {tuple(mask.shape)}.")
    coverage = F.interpolate(mask.to(feature.device, torch.float32), size=feature.shape[2:], mode="area")
    return [image.flatten().ge(0.5).nonzero()[:, 0] for image in coverage]


class StyleTargets:
    """A cache of the target views' features, each computed at its first use, up to a limit of memory.

    The cache is on the network's device. Views that do not fit are computed at every use: since views are visited
    equally often, replacing cached ones would not help. Each round creates a new cache.

    Args:
        loss: The style loss, whose network computes the features.
        images: The target views, (3, height, width) in [0, 1] each, on any device.
        layers: Layers to cache; None: all layers of the network.
        dtype: Type of the cached features; half precision rounds them by 2^-11, which hardly changes the distances.
        max_bytes: Limit of the cache in bytes; None: `feature_memory` of the network's device.
    """

    def __init__(
        self,
        loss: StyleLoss,
        images: Sequence[Float[Tensor, "3 height width"]] | Float[Tensor, "views 3 height width"],
        layers: Iterable[str] | None = None,
        dtype: torch.dtype = torch.float16,
        max_bytes: int | None = None,
    ) -> None:
        self.loss = loss
        self.images = images
        self.layers = tuple(loss.features.layers if layers is None else layers)
        self.dtype = dtype
        self.max_bytes = feature_memory(loss.features.mean.device) if max_bytes is None else max_bytes
        self.bytes_kept = 0
        self._kept: dict[int, Features] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, view: int) -> Features:
        """Features of one view, as a batch of one, on the network's device."""
        if view in self._kept:
            return self._kept[view]
        encoded = self.loss.encode(self.images[view][None].to(self.loss.features.mean.device))
        features = {name: encoded[name].to(self.dtype) for name in self.layers}
        size = sum(feature.nbytes for feature in features.values())
        if self.bytes_kept + size <= self.max_bytes:
            self._kept[view] = features
            self.bytes_kept += size
        return features


def feature_memory(device: torch.device) -> int:
    """Limit of the cache of target features in bytes: 4 GiB on a CPU, half of the free memory on a GPU."""
    if device.type != "cuda":
        return 4 * 2**30
    return torch.cuda.mem_get_info(device)[0] // 2


def feature_difference(
    rendered: Features,
    target: Features,
    layers: Sequence[str],
    mask: Float[Tensor, "1 height width"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the mean squared difference of aligned features, averaged over layers.

    With the restyled view this is the aligned term, with the base view the content term.

    Args:
        rendered: Features that carry the gradient.
        target: Features to compare with.
        layers: Layers to compare, with equal weights.
        mask: In [0, 1], of any size: weights of the cells; None: equal weights.

    Raises:
        ValueError: If there is no layer to compare, or the images differ in size.
    """
    if not layers:
        raise ValueError("Aligned features need at least one layer to compare.")
    terms = []
    for name in layers:
        a, b = rendered[name].float(), target[name].float()
        if a.shape != b.shape:
            raise ValueError(
                f"Aligned features must have the same size, got {name} {tuple(a.shape)} and {tuple(b.shape)}."
            )
        if mask is None:
            terms.append(F.mse_loss(a, b))
        else:
            inside = F.interpolate(mask[None].to(a), size=a.shape[2:], mode="area")
            terms.append((inside * (a - b).square()).sum() / (a.shape[1] * inside.sum()).clamp(min=1e-6))
    return torch.stack(terms).mean()


def gram_loss(rendered: Features, target: Features, layers: Sequence[str] | None = None) -> Float[Tensor, ""]:
    """Compute the mean squared difference of Gram matrices G = F Fᵀ / pixels over layers; sizes may differ."""
    names = list(rendered) if layers is None else list(layers)
    return torch.stack([F.mse_loss(_gram(rendered[name]), _gram(target[name])) for name in names]).mean()


def _gram(feature: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels channels"]:
    pixels = feature.float().flatten(2)
    return pixels @ pixels.mT / pixels.shape[2]
