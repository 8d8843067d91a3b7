"""Your own network and data, without touching adabatch: 30 measurements of a cell nucleus, benign or
malignant.

    cd examples
    adabatch model._target_=tabular.Net +model.width=64 dataset._target_=tabular.load schedule=adabatch

The data are scikit-learn's copy of the Wisconsin breast cancer set (569 samples). A loader returns (train,
test), each a pair of tensors or a map-style dataset. A network gets `num_classes` and `shape` (or `channels`)
if it asks for them; everything else comes from the configuration. With norms and dropout from
`adabatch.layers` the result does not depend on how a batch is cut.
"""

import torch
from torch import nn

from adabatch.layers import Dropout, norm


def load():
    """(train, test), each (inputs float [n, 30], labels int64 [n]); the test set is every fourth sample."""
    from sklearn.datasets import load_breast_cancer

    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs, labels = torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)
    tested = torch.arange(len(labels)) % 4 == 0
    inputs = (inputs - inputs[~tested].mean(0)) / inputs[~tested].std(0)
    return (inputs[~tested], labels[~tested]), (inputs[tested], labels[tested])


class Net(nn.Sequential):
    def __init__(self, num_classes: int, shape: tuple, width: int = 32):
        super().__init__(
            nn.Linear(shape[0], width),
            norm("ghost", width),
            nn.ReLU(),
            Dropout(0.2),
            nn.Linear(width, num_classes),
        )


def focal(outputs, labels, gamma: float = 2.0):
    """A loss of your own, `loss._target_=tabular.focal`: one value per sample [n] (Lin et al. 2017, arXiv
    1708.02002)."""
    logp = nn.functional.log_softmax(outputs, 1).gather(1, labels[:, None]).squeeze(1)
    return -((1 - logp.exp()) ** gamma) * logp
