"""The numbers of `noise`'s logarithm, sine and cosine, highest power first.

Apart from it, so that the kernel of the same transform is compiled where only Triton is installed.
"""

# Moves the cut between exponents from 1 to sqrt(1/2), where the logarithm's series is centred.
LOG_SHIFT, SQRT_HALF_BITS = 4913933, 1060439283
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
LOG_COEFS = (
    -0.08305379003286362,
    0.12798897922039032,
    -0.12943419814109802,
    0.1419023722410202,
    -0.1664348840713501,
    0.20001879334449768,
    -0.25000280141830444,
    0.33333325386047363,
)
ANGLE_STEP = 4.681337996e-08
SIN_COEFS = (-0.0001958801003638655, 0.008332748897373676, -0.166666641831398)
COS_COEFS = (2.454779314575717e-05, -0.0013888301327824593, 0.0416666641831398)
