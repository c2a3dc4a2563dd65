"""Layers and losses as functions, with PyTorch's names, arguments and defaults."""

from .activation import *  # noqa: F403
from .attention import multi_head_attention, scaled_dot_product_attention
from .convolution import conv1d, conv2d, conv_transpose1d, conv_transpose2d
from .linear import bilinear, dropout, dropout1d, dropout2d, embedding, linear, one_hot
from .loss import *  # noqa: F403
from .normalization import *  # noqa: F403
from .padding import pad
from .pooling import *  # noqa: F403
