"""One self-supervised pretraining run, from config to probe. Knows torch and FFCV; has never heard of Ray or Optuna.

`trainers.load_encoder(checkpoint)` gives a trained encoder as a `torch.nn.Module`; nothing heavy is imported before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Encoder", "load_encoder"]

if TYPE_CHECKING:
    from trainers.encoder import Encoder, load_encoder
else:  # hidden from type checkers, which would let any name pass

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from trainers import encoder

        return getattr(encoder, name)


def __dir__() -> list[str]:
    return __all__
