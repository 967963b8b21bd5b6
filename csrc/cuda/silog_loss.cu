#include "silog_loss.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(silog_loss, MDEPTH_SILOG_LOSS_KERNELS)
