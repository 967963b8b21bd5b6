"""Independent float64 loops in NumPy, written from the formulas: slow, and sharing nothing with the package."""

import numpy as np


def reflect(i, n):
    return -i if i < 0 else (2 * n - 2 - i if i >= n else i)


def bilinear(image, u, v, padding):
    """image (C,H,W) at one point."""
    channels, height, width = image.shape
    if padding == "border":
        u, v = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
    x, y = int(np.floor(u)), int(np.floor(v))
    out = np.zeros(channels)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - abs(u - (x + dx))) * (1 - abs(v - (y + dy)))
            if weight and 0 <= x + dx < width and 0 <= y + dy < height:
                out += weight * image[:, y + dy, x + dx]
    return out


def inverse_warp(source, depth, K, T, source_K, padding="border"):
    """source (C,Hs,Ws), depth (H,W): warped (C,H,W), in front (H,W), valid (H,W)."""
    height, width = depth.shape
    _, source_height, source_width = source.shape
    warped = np.zeros((source.shape[0], height, width))
    front, valid = np.zeros((height, width), bool), np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            point = T[:3, :3] @ (np.linalg.inv(K) @ np.array([x, y, 1.0]) * depth[y, x]) + T[:3, 3]
            uvz = source_K @ point
            if not uvz[2] > 1e-6:
                continue
            u, v = uvz[:2] / uvz[2]
            front[y, x] = True
            valid[y, x] = 0 <= u <= source_width - 1 and 0 <= v <= source_height - 1
            warped[:, y, x] = bilinear(source, u, v, padding)
    return warped, front, valid


def photometric_loss(a, b, ssim_weight=0.85):
    """Two images (C,H,W): (H,W)."""
    channels, height, width = a.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            rows = [reflect(y + d, height) for d in (-1, 0, 1)]
            columns = [reflect(x + d, width) for d in (-1, 0, 1)]
            distance = 0.0
            for c in range(channels):
                p, q = a[c][np.ix_(rows, columns)], b[c][np.ix_(rows, columns)]
                covariance = ((p - p.mean()) * (q - q.mean())).mean()
                ssim = ((2 * p.mean() * q.mean() + 1e-4) * (2 * covariance + 9e-4)) / (
                    (p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var() + q.var() + 9e-4)
                )
                distance += min(max((1 - ssim) / 2, 0.0), 1.0) / channels
            out[y, x] = ssim_weight * distance + (1 - ssim_weight) * np.abs(a[:, y, x] - b[:, y, x]).mean()
    return out


def min_reprojection(target, sources, depth, K, T, source_K, ssim_weight=0.85, auto_mask=True, padding="border"):
    """One image: target (3,H,W), sources (S,3,H,W), depth (H,W); the sum over pixels and the selection (H,W)."""
    height, width = depth.shape
    best = np.full((height, width), np.inf)
    selection = np.full((height, width), -1)
    if auto_mask:
        for source in sources:
            best = np.minimum(best, photometric_loss(source, target, ssim_weight))
    for s, source in enumerate(sources):
        warped, front, _ = inverse_warp(source, depth, K, T[s], source_K[s], padding)
        error = np.where(front, photometric_loss(warped, target, ssim_weight), np.inf)
        wins = error < best
        best[wins], selection[wins] = error[wins], s
    return np.where(np.isinf(best), 0.0, best).sum(), selection


def view_synthesis_loss(target, source, depth, K, T, source_K, weight, padding="masked"):
    """One image: target and source (3,H,W), depth and weight (H,W); the sums over colours of l1 and of ssim."""
    height, width = depth.shape
    warped, _, _ = inverse_warp(source, depth, K, T, source_K)
    inside = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            u, v, z = source_K @ (T[:3, :3] @ (np.linalg.inv(K) @ np.array([x, y, 1.0]) * depth[y, x]) + T[:3, 3])
            if z > 1e-6:
                column, row = np.floor(u / z), np.floor(v / z)
                inside[y, x] = column >= 0 and column + 1 <= width - 1 and row >= 0 and row + 1 <= height - 1
    if padding == "grey":
        warped[:, inside == 0] = 0.5
        inside[:] = 1
    counts = inside * weight
    l1 = (np.abs(warped - target) * counts).sum()
    ssim = 0.0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            rows, columns = slice(y - 1, y + 2), slice(x - 1, x + 2)
            distance = photometric_loss(warped[:, rows, columns], target[:, rows, columns], 1.0)[1, 1]
            ssim += counts[rows, columns].mean() * 3 * distance
    return l1, ssim


def disparity_to_depth(disparity, size, min_depth, max_depth):
    """One map (h,w) to depth of `size`; the outer edges of map and depth coincide."""
    height, width = disparity.shape
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            u, v = (x + 0.5) * width / size[1] - 0.5, (y + 0.5) * height / size[0] - 0.5
            s = bilinear(disparity[None], u, v, "border")[0]
            out[y, x] = 1 / (1 / max_depth + (1 / min_depth - 1 / max_depth) * s)
    return out


def edge_aware_smoothness(disparity, image, normalize=True):
    """A batch: disparity (B,H,W), image (B,C,H,W)."""
    batch, height, width = disparity.shape
    along_x, along_y = [], []
    for b in range(batch):
        d = disparity[b] / (disparity[b].mean() + 1e-7 if normalize else 1)
        for y in range(height):
            for x in range(width):
                if x + 1 < width:
                    weight = np.exp(-np.abs(image[b, :, y, x] - image[b, :, y, x + 1]).mean())
                    along_x.append(abs(d[y, x] - d[y, x + 1]) * weight)
                if y + 1 < height:
                    weight = np.exp(-np.abs(image[b, :, y, x] - image[b, :, y + 1, x]).mean())
                    along_y.append(abs(d[y, x] - d[y + 1, x]) * weight)
    return np.mean(along_x) + np.mean(along_y)


def ordinal_decode(logits, thresholds):
    """One image: logits (2K,H,W): depth (H,W), label (H,W)."""
    bins, height, width = len(logits) // 2, *logits.shape[1:]
    depth, label = np.zeros((height, width)), np.zeros((height, width), int)
    for y in range(height):
        for x in range(width):
            for k in range(bins):
                no, yes = np.exp(logits[2 * k, y, x]), np.exp(logits[2 * k + 1, y, x])
                label[y, x] += yes / (no + yes) > 0.5
            bin_ = min(label[y, x], bins - 1)
            depth[y, x] = 0.5 * thresholds[bin_] + 0.5 * thresholds[bin_ + 1]
    return depth, label


def ordinal_loss(logits, depth, thresholds, valid):
    """A batch: logits (B,2K,H,W), depth (B,H,W), valid (B,H,W)."""
    bins = logits.shape[1] // 2
    costs = []
    for b, y, x in np.argwhere(valid):
        inside = [k for k in range(bins) if thresholds[k] <= depth[b, y, x] < thresholds[k + 1]]
        true_bin = inside[0] if inside else (0 if depth[b, y, x] < thresholds[0] else bins - 1)
        cost = 0.0
        for k in range(bins):
            no, yes = np.exp(logits[b, 2 * k, y, x]), np.exp(logits[b, 2 * k + 1, y, x])
            cost -= np.log((yes if k < true_bin else no) / (no + yes))
        costs.append(cost)
    return np.mean(costs)


def depth_metrics(prediction, ground_truth, window, valid, clip, scale=1.0, shift=0.0, inverse=False):
    """One image: prediction, ground_truth (H,W): the twelve sums."""
    sums = np.zeros(12)
    for y in range(window[0], window[1]):
        for x in range(window[2], window[3]):
            p, g = prediction[y, x], ground_truth[y, x]
            if not valid[0] < g < valid[1]:
                continue
            p = scale * p + shift
            if inverse:
                p = 1 / p if p > 0 else clip[1]
            p = min(max(p, clip[0]), clip[1])
            e, ratio = np.log(p) - np.log(g), max(p / g, g / p)
            errors = [abs(p - g) / g, (p - g) ** 2 / g, ((p - g) / g) ** 2, (p - g) ** 2, e * e, e, abs(e)]
            sums += [1, *errors, *(ratio < 1.25**j for j in (1, 2, 3)), (1 / p - 1 / g) ** 2]
    return sums


def silog_loss(prediction, depth, valid, form, focus, scale):
    """A batch (B,H,W) each; `prediction` in metres."""
    residuals = [
        np.array([np.log(p) - np.log(y) for p, y in zip(*(m[b][valid[b]] for m in (prediction, depth)))])
        for b in range(len(depth))
    ]
    of_images = [(d**2).mean() - focus * d.mean() ** 2 if len(d) else 0.0 for d in residuals]
    together = np.concatenate(residuals)
    if form == "eigen":
        return (
            scale * sum(len(d) ** 2 * one for d, one in zip(residuals, of_images)) / sum(len(d) ** 2 for d in residuals)
        )
    if form == "image_mean":
        return scale * sum(of_images) / sum(len(d) > 0 for d in residuals)
    if form == "sqrt":
        return scale * np.sqrt((together**2).mean() - focus * together.mean() ** 2)
    return scale * np.sqrt(together.var(ddof=1) + (1 - focus) * together.mean() ** 2)


def berhu_loss(prediction, depth, valid, threshold):
    """A batch (B,H,W) each."""
    errors = [prediction[at] - depth[at] for at in map(tuple, np.argwhere(valid))]
    c = threshold * max(abs(x) for x in errors)
    return np.mean([abs(x) if abs(x) <= c else (x**2 + c**2) / (2 * c) for x in errors])


def nnconv5(x, dw_weight, dw_scale, dw_shift, pw_weight, pw_scale, pw_shift, skip):
    """One image: x (C,H,W), dw_weight (C,5,5), pw_weight (O,C), skip (O,2H,2W): (O,2H,2W)."""
    channels, height, width = x.shape
    inner = np.zeros((channels, height, width))
    for c in range(channels):
        for y in range(height):
            for x_ in range(width):
                total = 0.0
                for dy in range(5):
                    for dx in range(5):
                        if 0 <= y + dy - 2 < height and 0 <= x_ + dx - 2 < width:
                            total += dw_weight[c, dy, dx] * x[c, y + dy - 2, x_ + dx - 2]
                inner[c, y, x_] = max(dw_scale[c] * total + dw_shift[c], 0.0)
    out = np.zeros(skip.shape)
    for o in range(len(out)):
        for y in range(2 * height):
            for x_ in range(2 * width):
                total = sum(pw_weight[o, c] * inner[c, y // 2, x_ // 2] for c in range(channels))
                out[o, y, x_] = max(pw_scale[o] * total + pw_shift[o], 0.0) + skip[o, y, x_]
    return out


def conv_block(x, weight, bias, dw_weight=None, dw_bias=None, stride=1, cap=None, doubled=False):
    """One block of one image: x (C,H,W), weight (O,C,k,k), dw_weight (C,1,k,k): (O,H',W')."""
    if dw_weight is not None:
        # A depthwise convolution is a dense one whose weights between different channels are 0.
        dense = np.zeros((len(x), len(x), *dw_weight.shape[2:]))
        for c in range(len(x)):
            dense[c, c] = dw_weight[c, 0]
        x, stride = conv_block(x, dense, dw_bias, stride=stride, cap=cap), 1
    outputs, channels, kernel, _ = weight.shape
    _, height, width = x.shape
    step = 2 if doubled else 1
    out = np.zeros((outputs, step * ((height + stride - 1) // stride), step * ((width + stride - 1) // stride)))
    for o, y, x_ in np.ndindex(out.shape):
        total = bias[o]
        for c in range(channels):
            for dy in range(kernel):
                for dx in range(kernel):
                    row, column = y // step * stride + dy - kernel // 2, x_ // step * stride + dx - kernel // 2
                    if 0 <= row < height and 0 <= column < width:
                        total += weight[o, c, dy, dx] * x[c, row, column]
        out[o, y, x_] = min(max(total, 0.0), np.inf if cap is None else cap)
    return out


def icp_align(source, target, init, iterations, reach=None):
    """Clouds (N,3) and (M,3) or, with a window's `reach`, (H,W,3): T, residual (N,3), valid (N,)."""
    points = target.reshape(-1, 3)
    good = np.isfinite(points).all(1)
    usable = np.isfinite(source).all(1)
    if reach is not None:
        width = target.shape[1]
        with np.errstate(invalid="ignore"):
            good, usable = good & (points[:, 2] > 1e-6), usable & (source[:, 2] > 1e-6)
        rows, columns = np.divmod(np.flatnonzero(good), width)
        rays = points[good, :2] / points[good, 2:]
        lines = [
            np.linalg.lstsq(np.stack([ray, np.ones_like(ray)], 1), pixels, rcond=None)[0]
            for ray, pixels in zip(rays.T, (columns, rows))
        ]

    def match(T):
        found = np.full(len(source), -1)
        for i in np.flatnonzero(usable):
            p = T[:3, :3] @ source[i] + T[:3, 3]
            allowed = good.copy()
            if reach is not None:
                if not p[2] > 1e-6:
                    continue
                u, v = (np.floor(a * x / p[2] + b + 0.5) for (a, b), x in zip(lines, p))
                row, column = np.divmod(np.arange(len(points)), width)
                allowed &= (abs(column - u) <= reach) & (abs(row - v) <= reach)
            if allowed.any():
                distance = ((points - p) ** 2).sum(1)
                found[i] = np.where(allowed, distance, np.inf).argmin()
        return found

    T = init.copy()
    for _ in range(iterations):
        found = match(T)
        valid = found >= 0
        if valid.sum() >= 3:
            T = kabsch(source[valid] @ T[:3, :3].T + T[:3, 3], points[found[valid]]) @ T
    found = match(T)
    valid = found >= 0
    residual = np.where(valid[:, None], points[found] - (source @ T[:3, :3].T + T[:3, 3]), 0)
    return T, residual, valid


def kabsch(p, q):
    """The rigid transform (4,4) that takes points p (N,3) closest to q, by the singular value decomposition."""
    u, _, vt = np.linalg.svd((p - p.mean(0)).T @ (q - q.mean(0)))
    T = np.eye(4)
    T[:3, :3] = vt.T @ np.diag([1, 1, np.linalg.det(vt.T @ u.T)]) @ u.T
    T[:3, 3] = q.mean(0) - T[:3, :3] @ p.mean(0)
    return T
