"""What keeps the tests from being run at all, as opposed to a test that fails."""

__all__ = ("HarnessError",)


class HarnessError(Exception):
    """The machine could not be built or booted; the message says why in one sentence."""
