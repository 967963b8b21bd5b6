#include "ordinal_loss.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(ordinal_loss, MDEPTH_ORDINAL_LOSS_KERNELS)
