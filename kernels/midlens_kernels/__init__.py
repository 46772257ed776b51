"""Fused operations, each with a plain PyTorch reference that defines its meaning."""

from midlens_kernels._bags import reverse_index as reverse_index
from midlens_kernels._dispatch import use_backend as use_backend
from midlens_kernels._sparse_product import CHUNK as CHUNK
from midlens_kernels.bilinear_spectrum import bilinear_spectrum as bilinear_spectrum
from midlens_kernels.threshold_encode import threshold_encode as threshold_encode
from midlens_kernels.threshold_select import threshold_select as threshold_select
from midlens_kernels.topk_decode import topk_decode as topk_decode
from midlens_kernels.topk_encode import topk_encode as topk_encode
