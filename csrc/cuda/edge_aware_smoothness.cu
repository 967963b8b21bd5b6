#include "edge_aware_smoothness.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(edge_aware_smoothness, MDEPTH_EDGE_AWARE_SMOOTHNESS_KERNELS)
