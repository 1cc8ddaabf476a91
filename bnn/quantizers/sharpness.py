"""Gradients that sharpen during training: the t and k that IR-Net brought and others took over."""


class Sharpened:
    """Mixin of quantizers whose gradient has a sharpness `t`, which a schedule raises."""

    t: float

    def __init__(self, t: float = 0.1):
        super().__init__()
        self.set_sharpness(t)

    def set_sharpness(self, t: float) -> None:
        """Set t; ValueError unless it is positive."""
        if not t > 0:
            raise ValueError(f"t must be positive, got {t!r}")
        self.t = float(t)

    @property
    def k(self) -> float:
        """max(1 / t, 1): keeps the gradient at 0 from vanishing while t is small."""
        return max(1 / self.t, 1.0)

    def extra_repr(self) -> str:
        """Return t as the module's repr shows it."""
        return f"t={self.t:g}"
