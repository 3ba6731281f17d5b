"""What all slices of one distribution share: the reference that noisy slices are drawn towards.

A class's slices are 32 numbers per direction, most of them noise; but they are slices of *one* distribution in R^d.
Its mean m, covariance S and higher cumulants are few numbers, seen by all directions at once:

    mean along theta      <theta, m>              polynomial of degree 1 in theta
    variance              theta' S theta          degree 2
    l-th cumulant         T_l(theta, ..., theta)  degree l.

So a coefficient of degree l is a Gaussian process over the directions with covariance a_l <theta, theta'>^l (what a
tensor T_l of independent entries gives), and its posterior mean given the tables, whose noise is white and known, is
one linear solve. Three steps, each for all classes at once:

1. one symmetric shape, moved to <theta, m> and stretched to theta' S theta: Gauss-Newton on the likelihood of the
   tables;
2. the shape's own masses, by least squares over all directions;
3. Hermite corrections of degrees 1 to 3 to that (Gram and Charlier), their sizes a_l estimated from the tables
   (empirical Bayes, by the method of moments), common to the classes.

Where classes do not have that one shape, the likeliest mean and covariance are not the true ones, however many the
records; `references_of` has those of fitted slices in their place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import ndtr

from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables.simplex import simplex_least_squares

__all__ = ["references", "references_of"]

Array = NDArray[np.float64]

_NODES = np.linspace(-4.0, 4.0, 41)  # of the shape, in standard deviations
_STEP = float(_NODES[1] - _NODES[0])
_ENDS = np.append(_NODES - _STEP / 2, _NODES[-1] + _STEP / 2)
_ROUNDS = 4
_SMOOTHNESS = 1e5  # weight of the shape's squared second differences, in units of the noise
_DEGREES = 3
_FARTHEST = 3.0  # standard deviations: beyond, a correction is that of the farthest point
_LEAST = 0.02  # of the uncorrected density, that a correction leaves
_CG_STEPS = 80
_CG_TOLERANCE = 1e-4
_SMALLEST_SD = 0.3  # in bins
_FEW = 4  # components say too little of a variance


def references(y: Array, noise: Array, grid: BinGrid, kernel: Array, directions: Array) -> Array:
    """Densities on the inner bins that share mean, covariance, shape and low cumulants.

    Args:
        y: array of size [C, K, bins]: noisy histograms, each summing to about one.
        noise: array of size [C]: standard deviation of a cell's noise.
        grid: bins and smoothing.
        kernel: array of size [bins, inner]: where the mass of each inner bin is released.
        directions: array of size [K, d].

    Returns:
        Array of size [C, K, inner], non-negative, each row summing to one.
    """
    ends = np.linspace(-1.0, 1.0, kernel.shape[1] + 1)
    cosines = directions @ directions.T
    shapes = np.repeat(_normal()[None], len(y), axis=0)
    mean, variance = _start(y, grid, kernel, directions)
    base = variance.copy()
    for _ in range(_ROUNDS):
        mean, variance, base = _moments(y, noise, kernel, ends, cosines, shapes, mean, variance, base)
        shapes, variance, base = _reshaped(y, noise, kernel, ends, mean, variance, base)
    density = _warped(ends, mean, variance, shapes)
    return _corrected(y, noise, kernel, ends, cosines, density, mean, variance)


def references_of(
    fits: Array, y: Array, noise: Array, grid: BinGrid, kernel: Array, directions: Array
) -> Array:
    """The same, with the mean and the covariance of densities that were fitted to the slices one by one.

    Args:
        fits: array of size [C, K, inner], rows summing to one.
        y: as for `references`, like the others.
        noise: see `references`.
        grid: see `references`.
        kernel: see `references`.
        directions: see `references`.

    Returns:
        Array of size [C, K, inner], non-negative, each row summing to one.
    """
    ends = np.linspace(-1.0, 1.0, kernel.shape[1] + 1)
    centres = (ends[1:] + ends[:-1]) / 2
    cosines = directions @ directions.T
    mean = np.linalg.lstsq(directions, (fits @ centres).T, rcond=None)[0].T @ directions.T
    along = np.einsum("ckb,ckb->ck", fits, (centres - mean[..., None]) ** 2)
    variance = _quadratic(along, cosines, directions.shape[1])
    variance = np.maximum(variance, (_SMALLEST_SD * grid.width) ** 2)
    shapes = np.repeat(_normal()[None], len(y), axis=0)
    shapes, variance, _ = _reshaped(y, noise, kernel, ends, mean, variance, variance.mean(axis=1))
    density = _warped(ends, mean, variance, shapes)
    return _corrected(y, noise, kernel, ends, cosines, density, mean, variance)


def _start(y: Array, grid: BinGrid, kernel: Array, directions: Array) -> tuple[Array, Array]:
    """Means [C, K] along the directions and one variance per class, from each slice alone."""
    centres = (np.arange(kernel.shape[1]) - (kernel.shape[1] - 1) / 2) * grid.width
    f = simplex_least_squares(y.reshape(-1, y.shape[2]), kernel).reshape(*y.shape[:2], -1)
    along = f @ centres
    mean = np.linalg.lstsq(directions, along.T, rcond=None)[0].T @ directions.T
    spread = np.einsum("ckb,ckb->c", f, (centres - mean[..., None]) ** 2) / y.shape[1]
    spread = np.maximum(spread, (_SMALLEST_SD * grid.width) ** 2)  # not zero, even where every fit is one bin
    return mean, np.repeat(spread[:, None], y.shape[1], axis=1)


def _moments(
    y: Array, noise: Array, kernel: Array, ends: Array, cosines: Array, shapes: Array,
    mean: Array, variance: Array, base: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """One Gauss-Newton step of means and variances [C, K]; the last is the variance without its anisotropy."""
    width, dim = ends[1] - ends[0], 1.0 / float(np.mean(cosines**2))  # of orthonormal frames, exactly
    least = (_SMALLEST_SD * width) ** 2
    shift, stretch = 0.1 * width, 1.05

    def seen(mean: Array, variance: Array) -> Array:
        return np.asarray(_warped(ends, mean, variance, shapes) @ kernel.T)

    by_mean = (seen(mean + shift, variance) - seen(mean - shift, variance)) / (2 * shift)
    wider, narrower = variance * stretch**2, variance / stretch**2
    by_variance = (seen(mean, wider) - seen(mean, narrower)) / (wider - narrower)[..., None]
    slopes = np.stack([by_mean, by_variance], axis=-1)
    gram, right = _normal_equations(slopes, y - seen(mean, variance), noise)
    slice_weight = np.maximum(gram[..., [0, 1], [0, 1]], 1e-300)
    alone = np.stack([mean, variance], axis=-1) + right / slice_weight
    # The variance common to all directions first: in the unit ball the mean's squared norm and the variances along
    # an orthonormal frame sum to at most one (on the sphere to one), which says something where the noise does not.
    weight = slice_weight[..., 1]
    expected = 1.0 / dim - (mean**2).mean(axis=1)
    base = (weight * alone[..., 1]).sum(axis=1) + expected * dim**2
    base = np.clip(base / (weight.sum(axis=1) + dim**2), least, 1.0 / dim)
    alone[..., 1] -= base[:, None]
    # What is left of it is a polynomial of degree 2 without constant.
    kernels = [cosines, cosines**2 - 1.0 / dim]
    sizes = np.stack(
        [
            np.clip(_size(slice_weight[..., 0], alone[..., 0], kernels[0]), 1e-4 / dim, 1.0 / dim),
            np.clip(_size(weight, alone[..., 1], kernels[1]), (0.02 * base) ** 2, base**2),
        ],
        axis=1,
    )
    now = np.stack([mean, variance - base[:, None]], axis=-1)
    right = right + np.einsum("cklm,ckm->ckl", gram, now)
    found = _posterior(gram, right, kernels, sizes)
    mean = found[..., 0]
    mean *= np.minimum(1.0, np.sqrt(1.0 / dim / np.maximum((mean**2).mean(axis=1), 1e-300)))[:, None]
    variance = np.clip(base[:, None] + found[..., 1], 0.1 * base[:, None], 6.0 * base[:, None])
    return mean, np.maximum(variance, least), base


def _size(weight: Array, alone: Array, kernel: Array) -> Array:
    """Size [C] of a prior covariance size * kernel: from how much pairs of directions agree.

    Args:
        weight: array of size [C, K]: inverse variances of the noise on `alone`.
        alone: array of size [C, K]: what each slice says by itself.
        kernel: array of size [K, K].
    """
    heavy = weight * alone
    seen = np.einsum("cj,jk,ck->c", heavy, kernel, heavy, optimize=True) - weight @ np.diagonal(kernel)
    scale = np.einsum("cj,jk,ck->c", weight, kernel**2, weight, optimize=True)
    return np.asarray(seen / np.maximum(scale, 1e-300))


def _quadratic(along: Array, cosines: Array, dim: int) -> Array:
    """What of variances [C, K] along the directions is a quadratic form of them: the posterior mean, row by row.

    What no quadratic form explains is white; its size is that of the components that none of them has.
    """
    eigenvalues, vectors = np.linalg.eigh(cosines**2 - 1.0 / dim)
    seen = eigenvalues > 1e-6 * eigenvalues[-1]
    base = along.mean(axis=1, keepdims=True)
    components = (along - base) @ vectors
    rest = components[:, ~seen]
    white = np.square(rest).mean(axis=1, keepdims=True) if rest.shape[1] >= _FEW else np.zeros_like(base)
    components, prior = components[:, seen], eigenvalues[seen]
    size = (np.square(components) - white).sum(axis=1, keepdims=True) / max(float(prior.sum()), 1e-300)
    prior = np.maximum(size, 1e-12) * prior
    form = (prior / (prior + white) * components) @ vectors[:, seen].T
    return np.asarray(np.maximum(base + form, 0.1 * base))


def _reshaped(
    y: Array, noise: Array, kernel: Array, ends: Array, mean: Array, variance: Array, base: Array
) -> tuple[Array, Array, Array]:
    """Symmetric shapes [C, nodes] of variance one by least squares, and the variances that go with them."""
    half = len(_NODES) // 2 + 1
    fold = np.zeros((len(_NODES), half))
    fold[np.arange(half), np.arange(half)] = 0.5
    fold[len(_NODES) - 1 - np.arange(half), np.arange(half)] += 0.5
    bend = np.diff(np.eye(len(_NODES)), 2, axis=0) @ fold
    shapes, scales = [], []
    for c in range(len(y)):
        places = kernel @ (_warp(ends, mean[c], variance[c]) @ fold)
        gram = np.einsum("kbn,kbm->nm", places, places, optimize=True) / noise[c] ** 2
        target = np.einsum("kbn,kb->n", places, y[c], optimize=True) / noise[c] ** 2
        gram += _SMOOTHNESS * bend.T @ bend
        shape = fold @ simplex_least_squares(target[None], None, gram)[0]
        scales.append(max(float(shape @ _NODES**2), 1e-3))
        shapes.append(_standard(shape, scales[-1]))
    scale = np.array(scales)
    return np.array(shapes), variance * scale[:, None], base * scale


def _standard(shape: Array, variance: float) -> Array:
    masses = np.diff(np.interp(_ENDS * np.sqrt(variance), _ENDS, np.append(0.0, np.cumsum(shape))))
    return np.asarray(masses / masses.sum())


def _normal() -> Array:
    masses = np.diff(ndtr(_ENDS))
    return np.asarray(masses / masses.sum())


def _corrected(
    y: Array, noise: Array, kernel: Array, ends: Array, cosines: Array, density: Array, mean: Array, variance: Array
) -> Array:  # fmt: skip
    """The density times a polynomial of the standardised place, the coefficients' posterior mean."""
    centres = (ends[1:] + ends[:-1]) / 2
    place = np.clip((centres - mean[..., None]) / np.sqrt(variance)[..., None], -_FARTHEST, _FARTHEST)
    waves = density[..., None] * _hermite(place)
    waves -= density[..., None] * waves.sum(axis=2, keepdims=True)  # mass stays one
    gram, right = _normal_equations(np.matmul(kernel, waves), y - density @ kernel.T, noise)
    kernels = [cosines**degree for degree in range(1, _DEGREES + 1)]
    sizes = np.repeat(_sizes(gram, right, kernels)[None], len(y), axis=0)
    coefficients = _posterior(gram, right, kernels, sizes)
    corrected = density + np.einsum("ckil,ckl->cki", waves, coefficients)
    corrected = np.maximum(corrected, _LEAST * density)
    return np.asarray(corrected / corrected.sum(axis=2, keepdims=True))


def _hermite(z: Array) -> Array:
    """Orthonormal Hermite polynomials of degrees 1 to `_DEGREES` in a last axis."""
    values = [np.ones_like(z), z]
    for degree in range(1, _DEGREES):
        values.append((z * values[-1] - np.sqrt(degree) * values[-2]) / np.sqrt(degree + 1))
    return np.stack(values[1:], axis=-1)


def _normal_equations(slopes: Array, residual: Array, noise: Array) -> tuple[Array, Array]:
    """Gram matrices [C, K, L, L] and right sides [C, K, L] of each slice alone, in units of the noise."""
    precision = noise[:, None, None] ** -2
    gram = np.matmul(slopes.swapaxes(2, 3), slopes) * precision[..., None]
    return gram, np.einsum("ckbl,ckb->ckl", slopes, residual) * precision


def _sizes(gram: Array, right: Array, kernels: list[Array]) -> Array:
    """Variances a_l [L] of the coefficients: the second moments of `right` that they and the noise explain.

    With right = gram c + e, Var e = gram and E[c_l c_l'] = a_l kernel_l, the mean of every quadratic form of `right` is
    linear in a.
    """
    count = len(kernels)
    seen, matrix = np.zeros(count), np.zeros((count, count))
    for c in range(len(gram)):
        for i, kernel in enumerate(kernels):
            own = gram[c, :, i, i]
            weight = 1.0 / max(float(own @ own), 1e-300)  # every class counts alike
            seen[i] += weight * float(right[c, :, i] @ kernel @ right[c, :, i] - own @ np.diagonal(kernel))
            for j, other in enumerate(kernels):
                mixed = gram[c, :, i, j]
                matrix[i, j] += weight * float(mixed @ (kernel * other) @ mixed)
    return np.minimum(nnls(matrix, seen)[0], 1.0)


def _posterior(gram: Array, right: Array, kernels: list[Array], sizes: Array) -> Array:
    """Posterior mean [C, K, L] of coefficients with prior covariance sizes[c, l] kernels[l].

    Conjugate gradients on (gram + prior^-1) c = right, preconditioned by the prior: its inverse is never formed,
    since every iterate is the prior times a vector that is carried along.
    """

    def prior(w: Array) -> Array:
        return np.stack([w[..., i] @ kernel for i, kernel in enumerate(kernels)], axis=-1) * sizes[:, None]

    found = np.zeros_like(right)
    residual = right.copy()
    step = prior(residual)
    origin = residual.copy()  # step = prior(origin)
    size = (residual * step).sum(axis=(1, 2))
    enough = _CG_TOLERANCE**2 * size
    for _ in range(_CG_STEPS):
        going = size > enough  # a class that has arrived stays, or rounding errors would be all that moves it
        if not going.any():
            break
        image = np.einsum("cklm,ckm->ckl", gram, step) + origin
        curvature = (step * image).sum(axis=(1, 2))
        length = np.divide(size, curvature, out=np.zeros_like(size), where=going)[:, None, None]
        found += length * step
        residual -= length * image
        following = prior(residual)
        new = (residual * following).sum(axis=(1, 2))
        ratio = np.divide(new, size, out=np.zeros_like(size), where=going)[:, None, None]
        step, origin = following + ratio * step, residual + ratio * origin
        size = np.where(going, new, 0.0)
    return found


def _warped(ends: Array, mean: Array, variance: Array, shapes: Array) -> Array:
    """Masses [C, K, inner] of the shapes moved and stretched; what would leave the ball is in the last bins."""
    z = _standardised(ends, mean, variance)
    return np.stack(
        [
            np.diff(np.interp(places, _ENDS, np.append(0.0, np.cumsum(shape))), axis=-1)
            for places, shape in zip(z, shapes, strict=True)
        ]
    )


def _warp(ends: Array, mean: Array, variance: Array) -> Array:
    """The same as a matrix [K, inner, nodes] for one class."""
    z = _standardised(ends, mean, variance)
    below = np.clip((z[..., None] - _ENDS[:-1]) / _STEP, 0.0, 1.0)
    return np.diff(below, axis=1)


def _standardised(ends: Array, mean: Array, variance: Array) -> Array:
    z = (ends - mean[..., None]) / np.sqrt(variance)[..., None]
    z[..., 0], z[..., -1] = _ENDS[0], _ENDS[-1]
    # An end beyond the grid's would otherwise pass them.
    return np.asarray(np.clip(z, _ENDS[0], _ENDS[-1]))
