#include "photometric_loss.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(photometric_loss, MDEPTH_PHOTOMETRIC_LOSS_KERNELS)
