#include "ordinal_decode.cuh"

#include "launcher.h"

MDEPTH_KERNEL_TABLE(ordinal_decode, MDEPTH_ORDINAL_DECODE_KERNELS)
