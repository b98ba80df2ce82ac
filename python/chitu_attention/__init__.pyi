# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, overload

from ._core import Quantized as Quantized
from ._recipe import Quant as Quant, Recipe as Recipe, Weights as Weights
from ._record import Record
from ._sdpa import Replaced, Report, SdpaMode
from .flash_attn import flash_attn_func as flash_attn_func, flash_attn_varlen_func as flash_attn_varlen_func
from .sageattention import sageattn as sageattn, sageattn_varlen as sageattn_varlen

__version__: str
__all__: list[str]

# Of PyTorch, NumPy, CuPy, JAX, or anything with the buffer protocol or DLPack.
Array = TypeVar("Array")
_Method = str | Recipe
_Window = tuple[int | None, int | None] | None
_Positions = int | tuple[int, int] | Sequence[tuple[int, int]] | None
_Starts = Sequence[int] | Any | None

class Method(NamedTuple):
    name: str
    summary: str
    origin: str
    recipe: Recipe

class Kernel(NamedTuple):
    name: str
    scores: str
    weights: str
    available: bool
    device: Literal["cpu", "cuda"]

@overload
def attention(query: Array, key: Array | Quantized, value: Array | Quantized, *, method: _Method = "chitu", layout: str = "bhsd",
              causal: bool = False, window: _Window = None, scale: float | None = None, return_lse: Literal[False] = False, out: Any = None,
              lse: Any = None, query_starts: _Starts = None, key_starts: _Starts = None, query_positions: _Positions = None,
              key_positions: _Positions = None, kernel: str | None = None, threads: int = 0, stream: Any = None,
              key_lengths: _Starts = None, max_queries: int | None = None, max_keys: int | None = None,
              backward: Literal["exact"] | None = None) -> Array: ...
@overload
def attention(query: Array, key: Array | Quantized, value: Array | Quantized, *, method: _Method = "chitu", layout: str = "bhsd",
              causal: bool = False, window: _Window = None, scale: float | None = None, return_lse: Literal[True], out: Any = None,
              lse: Any = None, query_starts: _Starts = None, key_starts: _Starts = None, query_positions: _Positions = None,
              key_positions: _Positions = None, kernel: str | None = None, threads: int = 0, stream: Any = None,
              key_lengths: _Starts = None, max_queries: int | None = None, max_keys: int | None = None,
              backward: Literal["exact"] | None = None) -> tuple[Array, Array]: ...
@overload
def attention(query: Quantized, key: Any, value: Any, *, out: Array, method: _Method = "chitu", layout: str = "bhsd", causal: bool = False,
              window: _Window = None, scale: float | None = None, return_lse: bool = False, lse: Any = None, query_starts: _Starts = None,
              key_starts: _Starts = None, query_positions: _Positions = None, key_positions: _Positions = None, kernel: str | None = None,
              threads: int = 0, stream: Any = None, key_lengths: _Starts = None, max_queries: int | None = None, max_keys: int | None = None,
              backward: Literal["exact"] | None = None) -> Array | tuple[Array, Array]: ...
def explain(query: Any, key: Any, value: Any, *, method: _Method = "chitu", layout: str = "bhsd", causal: bool = False, window: _Window = None,
            scale: float | None = None, return_lse: bool = False, query_starts: _Starts = None, key_starts: _Starts = None,
            query_positions: _Positions = None, key_positions: _Positions = None, kernel: str | None = None, threads: int = 0,
            stream: Any = None, key_lengths: _Starts = None, max_queries: int | None = None, max_keys: int | None = None) -> str: ...
def quantize(x: Any, role: Literal["query", "key", "value"], *, method: _Method = "chitu", layout: str = "bhsd", starts: _Starts = None,
             keys: Quantized | None = None, centre: Any = None, channels: Any = None, threads: int = 0, stream: Any = None) -> Quantized: ...
def quantize_keys_and_values(key: Any, value: Any, *, method: _Method = "chitu", layout: str = "bhsd", starts: _Starts = None,
                             centre: Any = None, channels: Any = None, threads: int = 0,
                             stream: Any = None) -> tuple[Quantized, Quantized]: ...
@overload
def merge(*parts: Array, out: Any = None, lse: Any = None, layout: str = "bhsd", threads: int = 0,
          stream: Any = None) -> tuple[Array, Array]: ...
@overload
def merge(*parts: tuple[Array, Array], out: Any = None, lse: Any = None, layout: str = "bhsd", threads: int = 0,
          stream: Any = None) -> tuple[Array, Array]: ...
def methods() -> dict[str, Method]: ...
def kernels() -> list[Kernel]: ...
def doctor() -> str: ...
def release_workspaces() -> None: ...
def sdpa(method: _Method | Literal["torch"] = "chitu", *, strict: bool = False, **options: Any) -> SdpaMode: ...
def replace(module: Any, method: _Method | Literal["torch"] | dict[str, _Method] = "chitu", *,
            only: str | Iterable[str] | Callable[[str, Any], bool] | None = None, strict: bool = False, **options: Any) -> Replaced: ...
def record(model: Any, methods: str | Iterable[str] | dict[str, _Method] | None = None, *, rows: int = 256, max_l1: float = 0.05,
           save: Any = None, save_at_most: int = 8, progress: bool | None = None) -> Record: ...
def report(reset: bool = False) -> Report: ...
def register_flash_attention(method: _Method = "chitu", *, strict: bool = False, **options: Any) -> str: ...
