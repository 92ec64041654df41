"""How sure a score can be of which few images tell."""

import math

Z = 1.959964  # of the normal distribution: 95 % lie within
DRAWS, FEWEST = 200, 10  # repetitions of a bootstrap, and images of which it can tell something


def wilson(percent, images):
    """(low, high) in per cent: where the true share of right answers lies with 95 % confidence (Wilson 1927).

    percent: right answers of so many images, each counted once. 97 % of 60 images: 89 to 99.
    """
    share = percent / 100
    middle, spread = share + Z**2 / (2 * images), Z * math.sqrt(share * (1 - share) / images + Z**2 / (4 * images**2))
    low, high = ((middle + sign * spread) / (1 + Z**2 / images) for sign in (-1, 1))
    return 100 * max(0.0, low), 100 * min(1.0, high)


def bootstrap(count, score):
    """(low, high): 95 % of the scores of as many images, drawn from these with repetition (Efron 1979, percentiles).

    count: (K,) int64, how many images there are of each kind; score: a function of such counts. The draws have a generator of
    their own, so that the same counts give the same interval.
    """
    import numpy as np

    count = np.asarray(count, np.int64)
    draws = np.random.default_rng(0).multinomial(count.sum(), count / count.sum(), DRAWS)
    low, high = np.nanpercentile([score(drawn) for drawn in draws], [2.5, 97.5])
    return float(low), float(high)
