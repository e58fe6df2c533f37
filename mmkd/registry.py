"""mmdet's registries, and the scope ``mmkd`` below them.

mmkd registers into mmdet's own registries, so every MMDetection config finds
its classes. mmengine marks what a config inherits from ``mmkd::…`` with the
scope ``mmkd`` and then looks for registries of that scope; each of them here is
an empty child that passes every question on to mmdet.
"""

import mmdet.registry
from mmdet.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS
from mmengine.registry import Registry

REGISTRIES = [
    node for node in vars(mmdet.registry).values() if isinstance(node, Registry) and node.scope == "mmdet"
]
SCOPE = [Registry(node.name, parent=node, scope="mmkd") for node in REGISTRIES]

__all__ = ["DATASETS", "HOOKS", "MODELS", "OPTIM_WRAPPERS", "REGISTRIES", "SCOPE"]
