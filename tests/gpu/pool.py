"""Memory of cuDF and CuPy from CUDA's pool, as Boostline's workers have it."""


def use_pool() -> None:
    """Without one every column is a call of the driver that waits for the GPU."""
    import cupy
    import rmm
    from rmm.allocators.cupy import rmm_cupy_allocator

    rmm.mr.set_current_device_resource(rmm.mr.CudaAsyncMemoryResource())
    cupy.cuda.set_allocator(rmm_cupy_allocator)
