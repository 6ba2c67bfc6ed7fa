"""From routers' logits to the nodes' probabilities and to sampled leaves; see README.md."""

from .op import log_node_prob, tree_route
from .table import RouteTable, route_table

__all__ = ["RouteTable", "log_node_prob", "route_table", "tree_route"]
