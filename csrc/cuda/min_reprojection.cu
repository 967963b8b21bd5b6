#include "min_reprojection.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(min_reprojection, MDEPTH_MIN_REPROJECTION_KERNELS)
