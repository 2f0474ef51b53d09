"""What a record says of the base model that a run started from; read as `schema` is."""

# No `from __future__ import annotations`: the types are read at run time.
from typing import Annotated, NotRequired, TypedDict

from hylorada.records.described import About


class BaseModel(TypedDict):
    """The base as it was loaded."""

    base_model_sha256: NotRequired[
        Annotated[str, About("of the base's tensors as loaded", absent="ended early")]
    ]
    base_model_config_sha256: NotRequired[
        Annotated[str, About("of its configuration as loaded", absent="ended early")]
    ]
    base_model_dtype: NotRequired[
        Annotated[str, About("of its frozen weights", absent="ended early")]
    ]
    base_model_quantization: NotRequired[
        Annotated[str, About("`nf4`; the two hashes are of the files", absent="as it is")]
    ]
    base_model_read_from: NotRequired[
        Annotated[str, About("what was unpacked to its weights, in words", absent="as it is")]
    ]
    base_model_trained_length: NotRequired[
        Annotated[int, About("that it was trained on", "tokens", absent="ended early")]
    ]
