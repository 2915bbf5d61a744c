"""The tests on other kernels: Debian's 6.1 and 6.12 under qemu, beside the running one.

``python -m kernels`` (or ``make test-kernels``) does, for each kernel at the same time:

- `packages` fetches Debian's cloud kernel package and takes the kernel out of it.
  Nothing is installed and the machine's own apt configuration stays as it is.
- `archive` packs an initramfs: this Python interpreter, the packages the tests import,
  the checkout, a few programs, all at the same paths as here.
- `guest` is what runs in there as /init: it mounts what a host has and runs pytest.
- `machine` boots the kernel with qemu in software (no KVM needed), listens to the
  results on a serial port and says what became of every test.

The test files are those that run on this host, unchanged.
"""
