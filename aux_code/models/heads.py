"""Heads on pooled features."""

from torch import Tensor, nn
from torch.nn import functional as F


class UtilityHead(nn.Module):
    """f_T's embedding head (release): Linear + BN + ReLU, Linear without bias + BN, unit length.

    Args:
        feature_dim: width of the pooled feature.
        hidden_dim: 512 in the release.
        embedding_dim: 128 in the release.
    """

    def __init__(self, feature_dim: int, hidden_dim: int = 512, embedding_dim: int = 128):
        super().__init__()
        self.fc1 = nn.Linear(feature_dim, hidden_dim)
        self.bn1 = nn.BatchNorm1d(hidden_dim)
        self.bn2 = nn.BatchNorm1d(embedding_dim)
        self.fc2 = nn.Linear(hidden_dim, embedding_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, feature_dim) -> unit vectors (B, embedding_dim)."""
        hidden = F.relu(self.bn1(self.fc1(features)))
        return F.normalize(self.bn2(self.fc2(hidden)), dim=1)


class BudgetHead(nn.Module):
    """f_B's projection head (release, SimCLR): Linear, ReLU, Linear, unit length."""

    def __init__(self, feature_dim: int, hidden_dim: int, embedding_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(feature_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        """features (N, feature_dim) -> unit vectors (N, embedding_dim)."""
        return F.normalize(self.fc2(F.relu(self.fc1(features))), dim=1)
