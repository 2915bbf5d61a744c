"""The tests on other kernels than the running one: Debian's 6.1 and 6.12, under qemu.

``python -m kernels`` (or ``make test-kernels``) does, for each kernel at the same time:

- `packages` fetches Debian's cloud kernel package and takes the kernel out of it.
  Nothing is installed and the machine's own apt configuration stays as it is.
- `archive` packs an initramfs: this Python interpreter, the packages the tests import,
  the checkout, a few programs, all at the same paths as here.
- `guest` is a plugin for pytest inside the machine, which sends results to a serial port.
- `machine` boots the kernel with qemu in software (KVM is not needed), reads the results
  from the serial port and reports the outcome of every test.

The test files are those that run on this host, unchanged.
"""
