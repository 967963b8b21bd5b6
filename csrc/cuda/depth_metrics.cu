#include "depth_metrics.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(depth_metrics, MDEPTH_DEPTH_METRICS_KERNELS)
