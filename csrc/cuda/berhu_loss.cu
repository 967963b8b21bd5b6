#include "berhu_loss.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(berhu_loss, MDEPTH_BERHU_LOSS_KERNELS)
