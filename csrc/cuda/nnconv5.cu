#include "nnconv5.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(nnconv5, MDEPTH_NNCONV5_KERNELS)
