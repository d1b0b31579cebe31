"""Settings of answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field


def _seconds(value: Any) -> Any:
    """A number as it is written in the environment."""
    return float(value) if isinstance(value, str) and value.replace(".", "", 1).isdigit() else value


Disconnect = Literal["continue", "cancel"] | Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class AnswerSettings(BaseModel):
    """Answers that nobody reads"""

    on_disconnect: Annotated[Disconnect, BeforeValidator(_seconds)] = Field(
        "continue",
        description="What becomes of an answer when its last reader has gone: continue, cancel, or seconds to go on.",
    )
