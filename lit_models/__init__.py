"""Classic deep-learning architectures as LightningModules: one file each, imported when it is first asked for."""

from lit_models.common.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
