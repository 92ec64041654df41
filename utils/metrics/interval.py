"""How sure a score can be of which few images tell. Standard library only."""

import math

Z = 1.959964  # of the normal distribution: 95 % lie within


def wilson(percent, images):
    """(low, high) in per cent: where the true share of right answers lies with 95 % confidence (Wilson 1927).

    percent: right answers of so many images, each counted once. 97 % of 60 images: 89 to 99.
    """
    share = percent / 100
    middle, spread = share + Z**2 / (2 * images), Z * math.sqrt(share * (1 - share) / images + Z**2 / (4 * images**2))
    low, high = ((middle + sign * spread) / (1 + Z**2 / images) for sign in (-1, 1))
    return 100 * max(0.0, low), 100 * min(1.0, high)
