"""C++ kernels for CPUs, compiled when the app is set up and loaded without a compiler."""
