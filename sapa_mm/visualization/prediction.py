"""Pictures of what a segmentor or a depth estimator predicts, beside those of its upsampling."""

import math

import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn import functional as F

from .depth import depth_range, depth_to_rgb
from .superpixels import mark_superpixels
from .upsampling import DPI, PANEL_INCHES, PREDICTION_TITLE
