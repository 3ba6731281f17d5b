"""What a run may choose about the generator."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["GeneratorConfig"]

Width = Annotated[int, Field(ge=1, le=65_536)]


class GeneratorConfig(BaseModel):
    """Post-processing: everything here is free of privacy cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    noise_dim: int = Field(8, ge=1, le=4096, description="dimension of the Gaussian noise that goes in")
    hidden: tuple[Width, ...] = Field(
        (256, 512), min_length=1, description="widths of the hidden layers; the widest has the batch norm"
    )
    steps: int = Field(2_000, ge=1, description="steps of Adam; step t uses round t modulo their number")
    batch_size: int = Field(250, ge=2, description="generated points per step, divided among the classes")
    learning_rate: float = Field(1e-3, gt=0.0, allow_inf_nan=False)
