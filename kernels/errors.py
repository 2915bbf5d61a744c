"""The error for tests that cannot be run at all, as opposed to tests that fail."""

__all__ = ("HarnessError",)


class HarnessError(Exception):
    """The machine could not be built or booted; the message says why in one sentence."""
