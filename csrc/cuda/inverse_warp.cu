#include "inverse_warp.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(inverse_warp, MDEPTH_INVERSE_WARP_KERNELS)
