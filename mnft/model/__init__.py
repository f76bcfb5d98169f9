"""timm models: building, heads, freezing, weights, model folders.

Importing this package registers mnft's own architectures (LeNet-5, more widths) with timm.
"""

from mnft.model import lenet as lenet
from mnft.model import widths as widths
