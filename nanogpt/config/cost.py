"""Keys of `cost`: prices of devices."""

from typing import Annotated, get_args

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from nanogpt.config.hardware import Gpu
from nanogpt.errors import hint, one_line
from nanogpt.fields import free
from nanogpt.schema import ConfigModel

PRICED = ("cpu", "gpu", *get_args(Gpu))


def check_prices(prices: dict[str, float] | None) -> dict[str, float] | None:
    """Raise PydanticCustomError for a name that is no device."""
    for name in prices or ():
        if name not in PRICED:
            why = f"prices of cpu, gpu or a model of GPU such as h100, and {one_line(name)} is none{hint(name, PRICED)}"
            raise PydanticCustomError("form", "{why}", {"why": why})
    return prices


Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class CostConfig(ConfigModel):
    """Prices of devices, with which predictions and results also say what runs cost."""

    prices: Annotated[dict[str, Price] | None, AfterValidator(check_prices)] = free(
        None,
        "price of a device per hour, e.g. {h200: 3.5, gpu: 2, cpu: 0.02}; null: none; report, compare, list: the runs'",
        allowed="{device: price}, none negative",
    )
    currency: str = free("USD", "currency of the prices", pattern=r"^\w{1,8}$", allowed="a name, e.g. EUR")
