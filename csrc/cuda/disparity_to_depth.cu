#include "disparity_to_depth.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(disparity_to_depth, MDEPTH_DISPARITY_TO_DEPTH_KERNELS)
