"""Distance of samples from real images: FID, KID and Inception Score, with the floor of each."""

# N, M images of the two sets, F features, C classes

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import rel_entr
from torch import Tensor, nn

from meanmode.dit.evaluate.features import Features

ROWS_AT_ONCE = 512
"""Rows of the kernel matrix computed together: 200 MB if the other set has 50 000 images."""


SAMPLES = "samples"


Array = Float[np.ndarray, "_ F"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One metric of one set of images.

    Attributes:
        name: full name of the metric, from `metric_name`.
        value: value of the metric.
        standard_error: standard error over the draw of the images; None if unknown.
        n: number of images in the judged set.
    """

    name: str
    value: float
    standard_error: float | None
    n: int


def metric_name(
    metric: str,
    extractor: str,
    n: int,
    images: str = SAMPLES,
    *,
    nfe: int | None = None,
    cfg: float | None = None,
) -> str:
    """Full name of a metric, such as `FID-EffNetLite0(n=1000, nfe=25, cfg=2)`.

    The value also depends on the reference, the time shift and the seed, which are reported separately.

    Args:
        metric: FID, KID or IS.
        extractor: name of the extractor; only FIDs of the same extractor are comparable.
        n: number of judged images; FID decreases with it for any images.
        images: kind of images, included in the name unless they are samples: `FID-EffNetLite0(n=1000, real)`.
        nfe: number of sampling steps; None for images that were not sampled.
        cfg: guidance scale; None for images that were not sampled.
    """
    words = [f"n={n}"]
    if images != SAMPLES:
        words.append(images)
    if nfe is not None:
        words.append(f"nfe={nfe}")
    if cfg is not None:
        words.append(f"cfg={cfg:g}")
    return f"{metric}-{extractor}({', '.join(words)})"


class _Given(nn.Module):
    """Identity on features, for torchmetrics, which expects a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class Reference:
    """Real images that other sets are compared with; quantities of the real images are computed once.

    Args:
        real: features of the real images.

    Raises:
        ValueError: fewer than 3 images, or torchmetrics is not installed.
    """

    def __init__(self, real: Array) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
        except ImportError as error:
            raise ValueError("FID and KID need torchmetrics: pip install '.[eval]'") from error
        self._real = _double(real)
        self._frechet = FrechetInceptionDistance(_Given(real.shape[1]), reset_real_features=False)
        self._frechet.update(self._real, real=True)
        self._own_sums: Tensor | None = None

    def frechet_distance(self, images: Array) -> float:
        """FID: |mu - mu_r|^2 + tr(C + C_r - 2 (C C_r)^(1/2)) of the features (arXiv:1706.08500 Eq. 6).

        In double precision. The distance of a set to itself is zero up to 1e-12 of tr C, or up to 1e-6 if
        N <= F and C is rank deficient. It is biased upwards, more strongly for fewer images, so only FIDs of
        equally many images are comparable.

        Args:
            images: features of the other set.

        Raises:
            ValueError: fewer than 3 images, or a number of features that differs from the reference.
        """
        self._frechet.reset()
        self._frechet.update(self._fitting(images), real=False)
        return float(self._frechet.compute())

    def kernel_distance(self, images: Array) -> tuple[float, float]:
        """KID: unbiased squared MMD under the kernel (x.y / F + 1)^3, and its standard error.

        As in arXiv:1801.01401 but over all pairs instead of random subsets: the sets may differ in size, and
        nothing is random. The error is the jackknife's, leaving out one image of either set at a time. It is
        consistent unless both sets have the same distribution: then the statistic is degenerate and the
        jackknife variance is about twice too large.

        Args:
            images: features of the other set.

        Raises:
            ValueError: fewer than 3 images, or a number of features that differs from the reference.
        """
        x, y = self._fitting(images), self._real
        if self._own_sums is None:
            self._own_sums = _kernel_sums(y, y)[0]
        across_x, across_y = _kernel_sums(x, y)
        return _unbiased_mmd(_kernel_sums(x, x)[0], self._own_sums, across_x, across_y)

    def _fitting(self, images: Array) -> Tensor:
        if images.shape[1] != self._real.shape[1]:
            raise ValueError(
                f"the images have {images.shape[1]} features, the real ones {self._real.shape[1]}: "
                "use the same extractor for both"
            )
        return _double(images)


def _double(features: Array) -> Tensor:
    if len(features) < 3:
        raise ValueError(f"a distance between sets needs at least 3 images, got {len(features)}")
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float64))


def _kernel_sums(x: Float[Tensor, "N F"], y: Float[Tensor, "M F"]) -> tuple[Tensor, Tensor]:
    """Kernel sums of every image over the other set, [N] and [M], without pairs of an image with itself.

    torchmetrics' `poly_mmd` assumes sets of equal size and keeps the whole kernel in memory.
    """
    from torchmetrics.image.kid import poly_kernel

    over_y, over_x = torch.empty(len(x), dtype=x.dtype), torch.zeros(len(y), dtype=x.dtype)
    for first in range(0, len(x), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        kernel = poly_kernel(x[rows], y)
        if x is y:
            kernel.diagonal(first).zero_()
        over_y[rows] = kernel.sum(1)
        over_x += kernel.sum(0)
    return over_y, over_x


def _unbiased_mmd(
    own_x: Float[Tensor, " N"],
    own_y: Float[Tensor, " M"],
    across_x: Float[Tensor, " N"],
    across_y: Float[Tensor, " M"],
) -> tuple[float, float]:
    """The U-statistic and its jackknife standard error, from the kernel sums of every image."""

    def value(own: tuple[Tensor, Tensor], across: Tensor, n: int, m: int) -> Tensor:
        return own[0] / (n * (n - 1)) + own[1] / (m * (m - 1)) - 2 * across / (n * m)

    n, m = len(own_x), len(own_y)
    of_x, of_y, between = own_x.sum(), own_y.sum(), across_x.sum()
    without_x = value((of_x - 2 * own_x, of_y), between - across_x, n - 1, m)
    without_y = value((of_x, of_y - 2 * own_y), between - across_y, n, m - 1)
    variance = sum((len(left) - 1) * left.var(correction=0).item() for left in (without_x, without_y))
    return value((of_x, of_y), between, n, m).item(), variance**0.5


def inception_score(probabilities: Float[np.ndarray, "N C"]) -> tuple[float, float]:
    """IS: exp of the mean KL(p(class | image) | p(class)), and its standard error (arXiv:1606.03498).

    Computed over all images at once. The divergences are also the influence function of log IS, so their
    spread gives the error. torchmetrics' version permutes with the global generator, gives no error for all
    images at once, and gives NaN for a class of probability zero.

    Raises:
        ValueError: fewer than 2 images.
    """
    if len(probabilities) < 2:
        raise ValueError(f"an Inception Score needs at least 2 images, got {len(probabilities)}")
    p = probabilities.astype(np.float64)
    divergences = rel_entr(p, p.mean(0)).sum(1)
    score = float(np.exp(divergences.mean()))
    return score, score * float(divergences.std(ddof=1)) / len(p) ** 0.5


def compare(
    samples: Features,
    real: Features,
    held_out: Features,
    *,
    extractor: str,
    nfe: int,
    cfg: float,
    decoded: Features | None = None,
    untrained: Features | None = None,
) -> list[Row]:
    """FID, KID and IS of samples and of the sets that put them in context, against the same real images.

    Args:
        samples: features of N samples.
        real: features of the reference, any number of images.
        held_out: features of N real images outside the reference: the score of perfect samples.
        extractor: name of the feature extractor.
        nfe: number of sampling steps.
        cfg: guidance scale.
        decoded: features of the held-out images, encoded and decoded: the score of perfect latents.
        untrained: features of N samples of a network with fresh weights.

    Returns:
        Three rows per set, in the order samples, real, decoded, untrained.

    Raises:
        ValueError: a set differs in size from the samples, or `Reference` refuses it.
    """
    given = {SAMPLES: samples, "real": held_out, "decoded": decoded, "untrained": untrained}
    sets: Mapping[str, Features] = {name: of for name, of in given.items() if of is not None}
    for name, of in sets.items():
        if len(of) != len(samples):
            raise ValueError(
                f"all sets must have the same size: there are {len(samples)} samples "
                f"but {len(of)} images in `{name}`"
            )
    reference, rows = Reference(real.values), []
    for name, of in sets.items():
        sampled = {"nfe": nfe, "cfg": cfg} if name in (SAMPLES, "untrained") else {}
        found = {
            "FID": (reference.frechet_distance(of.values), None),
            "KID": reference.kernel_distance(of.values),
            "IS": inception_score(of.probabilities),
        }
        rows += [
            Row(
                name=metric_name(metric, extractor, len(of), name, **sampled),
                value=value,
                standard_error=error,
                n=len(of),
            )
            for metric, (value, error) in found.items()
        ]
    return rows
