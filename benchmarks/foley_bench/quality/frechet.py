"""The Frechet distance between two sets of embeddings."""

import numpy as np

from foley.envelope import Floats


def frechet_distance(one: Floats, other: Floats) -> float:
    """Return the squared Frechet distance of two sets of embeddings, [n, width] and [m, width], n, m >= 2.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Dowson & Landau (1982), with unbiased covariances; Kilgour et al.,
    "Frechet Audio Distance" (Interspeech 2019), on CLAP embeddings here. Few clips make it larger: compare only figures
    of equally many.
    """
    a, b = (np.asarray(rows, np.float64) for rows in (one, other))
    means = np.square(a.mean(0) - b.mean(0)).sum()
    a, b = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (a, b))
    # with C1 = a' a and C2 = b' b, the eigenvalues of C1 C2 are the squared singular values of a b'
    cross = np.linalg.norm(a @ b.T, "nuc")
    return float(max(0.0, means + np.square(a).sum() + np.square(b).sum() - 2 * cross))
