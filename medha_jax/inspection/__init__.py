"""Memory, traffic and work of a layout, found without weights, requests or its devices."""

from medha_jax.inspection.inspection import corners, every, inspect_layout
from medha_jax.inspection.layout_report import BucketReport, LayoutReport
from medha_jax.inspection.traffic import Traffic

__all__ = ["BucketReport", "LayoutReport", "Traffic", "corners", "every", "inspect_layout"]
