"""How far samples are from real images: FID, KID and Inception Score, beside the floors of each."""

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
"""Of a kernel matrix: 200 MB where the other set has 50 000 images."""


SAMPLES = "samples"


Array = Float[np.ndarray, "_ F"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A number of a table of results.

    Attributes:
        name: of the metric, `metric_name`.
        value: of it.
        standard_error: of the value, over the draw of the images; None where none is known.
        n: images of the set that is judged.
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
    """What a number is called: `FID-EffNetLite0(n=1000, nfe=25, cfg=2)`.

    It depends on the reference, the time shift and the seed as well, which stand beside it.

    Args:
        metric: FID, KID or IS.
        extractor: name of the extractor; a FID is comparable with those of the same one only.
        n: images that are judged; FID falls with their number, whatever they are.
        images: what they are, named where they are not samples: `FID-EffNetLite0(n=1000, real)`.
        nfe: steps of the sampler; None for images that were not sampled.
        cfg: scale of the guidance.
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
    """Features as they are, where torchmetrics asks for a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class Reference:
    """Real images that others are compared with; what is known of them alone is computed once.

    Args:
        real: their features.

    Raises:
        ValueError: fewer than 3 images, or no torchmetrics.
    """

    def __init__(self, real: Array) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
        except ImportError as error:
            raise ValueError("FID and KID come with torchmetrics: pip install '.[eval]'") from error
        self._real = _double(real)
        self._frechet = FrechetInceptionDistance(_Given(real.shape[1]), reset_real_features=False)
        self._frechet.update(self._real, real=True)
        self._own_sums: Tensor | None = None

    def frechet_distance(self, images: Array) -> float:
        """FID: |mu - mu_r|^2 + tr(C + C_r - 2 (C C_r)^(1/2)) of the features (arXiv:1706.08500 Eq. 6).

        In double precision; of a set to itself it is zero up to 1e-12 of tr C, or up to 1e-6 where N <= F
        and C has not full rank. It is biased upwards, the more the fewer images there are: only FIDs of as
        many images compare.

        Args:
            images: features of the other set.

        Raises:
            ValueError: fewer than 3 images, or other features than the reference has.
        """
        self._frechet.reset()
        self._frechet.update(self._fitting(images), real=False)
        return float(self._frechet.compute())

    def kernel_distance(self, images: Array) -> tuple[float, float]:
        """KID: unbiased squared MMD under the kernel (x.y / F + 1)^3, and its standard error.

        As arXiv:1801.01401, but of all pairs and not of random subsets: the sets need not be of one size, and
        nothing is drawn. The error is the jackknife's, one image left out at a time on either side. It is
        consistent, but where both sets have one distribution: there the statistic is degenerate, and the
        jackknife's variance about twice too large.

        Args:
            images: features of the other set.

        Raises:
            ValueError: fewer than 3 images, or other features than the reference has.
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
                "take both with one extractor"
            )
        return _double(images)


def _double(features: Array) -> Tensor:
    if len(features) < 3:
        raise ValueError(f"a distance of sets needs at least 3 images, got {len(features)}")
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float64))


def _kernel_sums(x: Float[Tensor, "N F"], y: Float[Tensor, "M F"]) -> tuple[Tensor, Tensor]:
    """Sums of the kernel over the other set [N] and [M]; an image of one set is no pair with itself.

    torchmetrics' `poly_mmd` takes both sets to be of one size, and holds all of the kernel.
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
    """The U-statistic, and its standard error by the jackknife, from the sums of every image's pairs."""

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

    Of all images at once. The divergences are also the influence function of log IS, so that their spread
    gives the error. torchmetrics' own permutes with the global generator, gives no error for all images at
    once, and NaN for a class of probability zero.

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
    """FID, KID and IS of samples, and of what they are to be read against, to one set of real images.

    Args:
        samples: N of them.
        real: the reference, any number.
        held_out: N real images outside of the reference: what perfect samples would have.
        extractor: name of what took the features.
        nfe: steps of the sampler.
        cfg: scale of the guidance.
        decoded: the held-out images, encoded and decoded: what perfect latents would have.
        untrained: N samples of a network with fresh weights.

    Returns:
        Three rows for every set, in the order samples, real, decoded, untrained.

    Raises:
        ValueError: sets of other sizes than the samples, or that `Reference` refuses.
    """
    given = {SAMPLES: samples, "real": held_out, "decoded": decoded, "untrained": untrained}
    sets: Mapping[str, Features] = {name: of for name, of in given.items() if of is not None}
    for name, of in sets.items():
        if len(of) != len(samples):
            raise ValueError(
                f"a table compares sets of one size: there are {len(samples)} samples, "
                f"but {len(of)} of the images `{name}`"
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
