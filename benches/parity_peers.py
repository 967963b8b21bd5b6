"""The peers of `parity.py`: what is run of each original repository, and what of ours it is compared with.

None of their code is here. An adapter imports it from the clone, calls it, and yields `Comparison`s.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import parity_stand_ins
import torch
import torch.nn.functional as F
from parity import CannotImport, Comparison, Tensors
from torch import Tensor, nn

from mdepth_fast import losses, models
from mdepth_fast.evaluation import Evaluator, Protocol, depth_metrics
from mdepth_fast.geometry import pose_matrix, pose_matrix_from_vector, scale_intrinsics
from mdepth_fast.losses.flow import border_mask
from mdepth_fast.losses.vid2depth import pair_transforms
from mdepth_fast.ops import photometric_loss

HEIGHT, WIDTH = 64, 96
SCALES = range(4)
SPAN, LOW = 10.0, 0.01  # disparity of SfMLearner and vid2depth: SPAN * sigmoid + LOW
_CENTRES = "our intrinsics of scale s keep pixel centres on integers, the peer's are divided by 2^s"


class Peer:
    """A clone, from which an adapter loads modules."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stand_ins: set[str] = set()

    def inert(self, *names: str) -> None:
        """Puts inert modules in the place of packages, or of the peer's own modules, that are not compared."""
        parity_stand_ins.install_inert(*names)
        self.stand_ins |= set(names)

    def torchvision(self) -> None:
        if parity_stand_ins.install_torchvision():
            self.stand_ins.add("torchvision")

    def tensorflow(self) -> parity_stand_ins.TensorFlow:
        self.stand_ins.add("tensorflow")
        return parity_stand_ins.install_tensorflow()

    def load(self, module: str, subfolder: str = "", argv: Sequence[str] = ()) -> Any:
        """A module of the peer. `argv` is what it finds on its command line."""
        sys.path.insert(0, str(self.folder / subfolder))
        importlib.invalidate_caches()
        try:
            with mock.patch.object(sys, "argv", [module, *argv]):
                return importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise CannotImport(f"{module} cannot be imported: {type(error).__name__}: {error}") from error


# ------------------------------------------------------------------------------------------------- random arguments


def images(*shape: int) -> Tensor:
    """Images in [0, 1] with coarse and fine structure, (..., 3, HEIGHT, WIDTH) unless a size is given."""
    *lead, height, width = shape
    coarse = torch.rand(int(np.prod(lead)), 1, height // 8 + 1, width // 8 + 1)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return (0.8 * smooth + 0.2 * torch.rand_like(smooth)).view(shape)


def camera(batch: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    K = torch.eye(3).repeat(batch, 1, 1)
    K[:, 0, 0], K[:, 1, 1] = 0.8 * width, 0.8 * width
    K[:, 0, 2], K[:, 1, 2] = 0.48 * width, 0.53 * height
    return K


def maps(batch: int, channels: int = 1, low: float = 0.02, high: float = 0.3) -> list[Tensor]:
    """Leaf maps between `low` and `high`, finest first."""
    sizes = [(batch, channels, HEIGHT // 2**s, WIDTH // 2**s) for s in SCALES]
    return [(low + (high - low) * images(*size)).requires_grad_() for size in sizes]


def logits(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


# ------------------------------------------------------------------------------------------------------ comparisons


def with_gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensors:
    """The outputs, and the gradients of a random combination of them, the same for the same shapes."""
    generator = torch.Generator().manual_seed(1)
    total = sum((one * torch.rand(one.shape, generator=generator)).sum() for one in outputs)
    return Tensors(outputs, torch.autograd.grad(total, inputs, allow_unused=False) if inputs else ())


def network(
    what: str,
    theirs: Callable[..., Sequence[Tensor]],
    parameters: Mapping[str, Tensor],
    ours: nn.Module,
    call: Callable[..., Sequence[Tensor]],
    translate: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    *inputs: Tensor,
    used: Callable[[str], bool] = lambda name: True,
) -> Comparison:
    """Outputs of two networks, and gradients for inputs and parameters. `ours` must have the peer's weights.

    translate: the peer's names and layouts of parameters to ours, applied to its gradients. used: whether a parameter
    of the peer has a part in the outputs.
    """
    names = [name for name in parameters if parameters[name].requires_grad and used(name)]

    def of_theirs() -> Tensors:
        leaves = [one.clone().requires_grad_() for one in inputs]
        found = with_gradients(theirs(*leaves), [*leaves, *(parameters[name] for name in names)])
        own = translate(dict(zip(names, found.gradients[len(leaves) :])))
        return Tensors(found.values, [*found.gradients[: len(leaves)], *(own[key] for key in sorted(own))])

    def of_ours() -> Tensors:
        leaves = [one.clone().requires_grad_() for one in inputs]
        own = dict(ours.named_parameters())
        return with_gradients(call(*leaves), [*leaves, *(own[key] for key in sorted(own))])

    return Comparison(what, of_theirs, of_ours)


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def published(model: models.base.Model) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """From "<file>:<key>" of a system published as a folder to the keys of `model`; other keys are left out."""
    names = {f"{file}:{key}": own for file, keys in model.published_files().items() for key, own in keys.items()}
    return lambda state: {names[key]: value for key, value in state.items() if key in names}


def settle(net: nn.Module, *inputs: Any) -> None:
    """Fills running statistics with those of a batch, so that a network in eval mode still has a signal."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.weight, 1, 0.1)
        nn.init.normal_(norm.bias, 0, 0.1)
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(*inputs)
    for norm in norms:
        norm.momentum = 0.1


def metrics(what: str, theirs: Callable[[], Sequence[float]], ours: Callable[[], Sequence[float]]) -> Comparison:
    """Numbers, each as a tensor of its own."""

    def tensors(numbers: Callable[[], Sequence[float]]) -> Callable[[], Tensors]:
        return lambda: Tensors([torch.tensor(float(one)) for one in numbers()])

    return Comparison(what, tensors(theirs), tensors(ours))


def depths(count: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth and predictions in metres."""
    truth = 1 + 60 * torch.rand(count)
    return truth.numpy(), (truth * torch.exp(0.3 * torch.randn(count))).numpy()


EIGEN = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")


# ------------------------------------------------------------------------------------------------------- Monodepth2


def monodepth2(peer: Peer) -> Iterator[Comparison]:
    peer.torchvision()
    peer.inert("tensorboardX", "IPython", "cv2", "kitti_utils", "datasets", "options")
    networks, layers = peer.load("networks"), peer.load("layers")
    for depth in (18, 50):
        yield from _monodepth2_networks(networks, depth)
    yield _monodepth2_posecnn(networks)
    yield _monodepth2_poses(layers)

    x, y = images(2, 3, HEIGHT, WIDTH), images(2, 3, HEIGHT, WIDTH)

    def ssim(distance: Callable[[Tensor, Tensor], Tensor]) -> Tensors:
        leaf = x.clone().requires_grad_()
        return with_gradients([distance(leaf, y)], [leaf])

    yield Comparison(
        "SSIM",
        lambda: ssim(lambda one, other: layers.SSIM()(one, other).mean(1, True)),
        lambda: ssim(lambda one, other: photometric_loss(one, other, ssim_weight=1.0)),
    )
    trainer = peer.load("trainer")
    yield _monodepth2_loss("loss M, as published", trainer, layers, {}, losses.MonodepthLoss(), published_eps=True)
    for what, options, ours in (
        ("loss M: auto-masking, minimum", {}, {}),
        ("loss, average of the sources", {"avg_reprojection": True}, {"average_reprojection": True}),
        ("loss without auto-masking", {"disable_automasking": True}, {"auto_mask": False}),
        ("loss without SSIM", {"no_ssim": True}, {"ssim_weight": 0.0}),
        ("loss at native scales", {"v1_multiscale": True}, {"native_scale": True}),
        (
            "loss with a predictive mask",
            {"disable_automasking": True, "predictive_mask": True},
            {"auto_mask": False, "predictive_mask": True},
        ),
    ):
        yield _monodepth2_loss(what, trainer, layers, options, losses.MonodepthLoss(**ours))
    truth, prediction = depths()
    evaluate = peer.load("evaluate_depth")
    own = depth_metrics(prediction, truth)
    yield metrics("metrics", lambda: evaluate.compute_errors(truth, prediction), lambda: [own[name] for name in EIGEN])


def _monodepth2_networks(networks: Any, depth: int) -> Iterator[Comparison]:
    encoder = networks.ResnetEncoder(depth, False)
    decoder = networks.DepthDecoder(encoder.num_ch_enc, SCALES)
    ours = models.Monodepth2(depth).double()
    x = images(2, 3, HEIGHT, WIDTH)
    settle(encoder, images(4, 3, HEIGHT, WIDTH))
    translate = published(ours)

    def state(which: str) -> dict[str, Tensor]:
        parts = ((encoder, "encoder.pth:"), (decoder, "depth.pth:"))
        return {key: value for net, file in parts for key, value in prefixed(_all(net, which), file).items()}

    def listed(outputs: Mapping[Any, Tensor]) -> list[Tensor]:
        return [outputs["disp", s] for s in SCALES]

    for mode in (True, False):
        ours.load_state_dict(translate(state("state_dict")))
        encoder.train(mode), ours.train(mode)
        yield network(
            f"depth network, ResNet-{depth}, {'train' if mode else 'eval'} mode",
            lambda one: listed(decoder(encoder(one))),
            state("named_parameters"),
            ours,
            lambda one: ours(one),
            translate,
            x,
            used=lambda name: ".fc." not in name,
        )
    pose_encoder = networks.ResnetEncoder(depth, False, 2)
    pose = networks.PoseDecoder(pose_encoder.num_ch_enc, 1, 2)
    our_pose = models.PoseNet(depth).double()
    settle(pose_encoder, images(4, 6, HEIGHT, WIDTH))
    pose_encoder.eval(), our_pose.eval()
    both = {**prefixed(_all(pose_encoder, "state_dict"), "pose_encoder.pth:"), **prefixed(_all(pose), "pose.pth:")}
    our_pose.load_state_dict(published(our_pose)(both))
    yield network(
        f"pose network, ResNet-{depth}",
        lambda first, second: _first_motion(pose([pose_encoder(torch.cat([first, second], 1))])),
        {**prefixed(dict(pose_encoder.named_parameters()), "pose_encoder.pth:"), **prefixed(_all(pose), "pose.pth:")},
        our_pose,
        lambda first, second: our_pose(first, second),
        published(our_pose),
        images(2, 3, HEIGHT, WIDTH),
        images(2, 3, HEIGHT, WIDTH),
        used=lambda name: ".fc." not in name,
    )
    if depth != 18:
        return
    shared = networks.PoseDecoder(encoder.num_ch_enc, 2)
    our_shared = models.SharedPoseNet(512).double()
    our_shared.load_state_dict(published(our_shared)(prefixed(_all(shared), "pose.pth:")))
    yield network(
        "pose decoder on the depth network's features",
        lambda first, second: _first_motion(shared([[first], [second]])),
        prefixed(_all(shared), "pose.pth:"),
        our_shared,
        lambda first, second: our_shared(first, second),
        published(our_shared),
        torch.rand(2, 512, 2, 3),
        torch.rand(2, 512, 2, 3),
    )
    mask = networks.DepthDecoder(encoder.num_ch_enc, SCALES, num_output_channels=2)
    our_mask = models.PredictiveMask(tuple(map(int, encoder.num_ch_enc)), 2).double()
    our_mask.load_state_dict(published(our_mask)(prefixed(_all(mask), "predictive_mask.pth:")))
    features = [torch.rand(2, int(c), HEIGHT >> n, WIDTH >> n) for n, c in enumerate(encoder.num_ch_enc, 1)]
    yield network(
        "predictive mask",
        lambda *levels: listed(mask(levels)),
        prefixed(_all(mask), "predictive_mask.pth:"),
        our_mask,
        lambda *levels: our_mask(list(levels)),
        published(our_mask),
        *features,
    )


def _all(net: nn.Module, which: str = "named_parameters") -> dict[str, Tensor]:
    return dict(net.state_dict() if which == "state_dict" else net.named_parameters())


def _first_motion(motion: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [part[:, 0, 0] for part in motion]


def _monodepth2_posecnn(networks: Any) -> Comparison:
    net, ours = networks.PoseCNN(2), models.PoseCNN().double()
    ours.load_state_dict(published(ours)(prefixed(_all(net), "pose.pth:")))
    return network(
        "PoseCNN",
        lambda first, second: _first_motion(net(torch.cat([first, second], 1))),
        prefixed(_all(net), "pose.pth:"),
        ours,
        lambda first, second: ours(first, second),
        published(ours),
        images(2, 3, HEIGHT, WIDTH),
        images(2, 3, HEIGHT, WIDTH),
    )


def _monodepth2_poses(layers: Any) -> Comparison:
    angles, shift = torch.randn(5, 1, 3).requires_grad_(), torch.randn(5, 1, 3).requires_grad_()

    def both(matrix: Callable[..., Tensor]) -> Tensors:
        return with_gradients([matrix(angles, shift, invert=one) for one in (False, True)], [angles, shift])

    return Comparison(
        "pose matrices",
        lambda: both(layers.transformation_from_parameters),
        lambda: both(lambda *args, invert: pose_matrix(*args, invert)[:, 0]),
    )


def _monodepth2_loss(
    what: str,
    trainer: Any,
    layers: Any,
    options: Mapping[str, bool],
    ours: losses.MonodepthLoss,
    published_eps: bool = False,
) -> Comparison:
    """Trainer's methods on an object that its `__init__`, which wants data and a GPU, has not touched.

    Project3D divides by z + eps. That moves some points into the next pixel, and then the gradient of bilinear sampling
    is another; so gradients are compared with eps 0, and with the published eps the value alone.
    """
    batch, count = 2, 2
    frames = [images(batch, 3, HEIGHT, WIDTH) for _ in range(1 + count)]
    K = camera(batch)
    disparities = maps(batch, low=0.05, high=0.9)
    T = pose_matrix_from_vector(0.05 * torch.randn(batch, count, 6)).requires_grad_()
    masks = [torch.rand(batch, count, *one.shape[2:]).requires_grad_() for one in disparities]
    predictive = bool(options.get("predictive_mask"))
    leaves = [] if published_eps else [*disparities, T, *(masks if predictive else [])]

    def theirs() -> Tensors:
        it = object.__new__(trainer.Trainer)
        switches = ("avg_reprojection", "disable_automasking", "no_ssim", "v1_multiscale", "predictive_mask")
        it.opt = SimpleNamespace(
            **(dict.fromkeys(switches, False) | dict(options)),
            scales=list(SCALES),
            frame_ids=[0, -1, 1],
            height=HEIGHT,
            width=WIDTH,
            min_depth=0.1,
            max_depth=100.0,
            pose_model_type="separate_resnet",
            disparity_smoothness=1e-3,
        )
        it.num_scales, it.device, it.ssim = len(SCALES), torch.device("cpu"), layers.SSIM()
        sizes = [(batch, HEIGHT // 2**s, WIDTH // 2**s) for s in SCALES]
        it.backproject_depth = {s: layers.BackprojectDepth(*size).double() for s, size in enumerate(sizes)}
        eps = {} if published_eps else {"eps": 0.0}
        it.project_3d = {s: layers.Project3D(*size, **eps).double() for s, size in enumerate(sizes)}
        inputs: dict[Any, Tensor] = {}
        for s, (_, height, width) in enumerate(sizes):
            for key, frame in zip((0, -1, 1), frames):
                inputs["color", key, s] = F.interpolate(frame, (height, width), mode="area")
            whole = torch.eye(4).repeat(batch, 1, 1)
            whole[:, :3, :3] = scale_intrinsics(K, 0.5**s, 0.5**s)
            inputs["K", s], inputs["inv_K", s] = whole, whole.inverse()
        outputs: dict[Any, Any] = {("disp", s): one for s, one in enumerate(disparities)}
        outputs |= {("cam_T_cam", 0, key): T[:, n] for n, key in enumerate((-1, 1))}
        outputs["predictive_mask"] = {("disp", s): one for s, one in enumerate(masks)}
        with mock.patch.object(torch, "randn", lambda shape, **where: torch.zeros(shape)):  # that breaks ties
            it.generate_images_pred(inputs, outputs)
            return with_gradients([it.compute_losses(inputs, outputs)["loss"]], leaves)

    def of_ours() -> Tensors:
        target, *sources = frames
        arguments = {"masks": masks, "return_parts": True} if predictive else {}
        loss = ours(disparities, target, torch.stack(sources, 1), K, T, **arguments)
        return with_gradients([loss[0] if predictive else loss], leaves)

    return Comparison(what, theirs, of_ours)


# ----------------------------------------------------------------------------------------------- SfmLearner-Pytorch


def sfmlearner_pytorch(peer: Peer) -> Iterator[Comparison]:
    net = peer.load("models.DispNetS").DispNetS()
    net.init_weights()
    ours = models.DispNet(padding="symmetric").double()
    ours.load_state_dict(ours.translate(net.state_dict()))
    yield network(
        "DispNetS",
        net,
        dict(net.named_parameters()),
        ours,
        lambda x: [SPAN * one + LOW for one in ours(x / 2 + 0.5)],
        ours.translate,
        2 * images(2, 3, HEIGHT, WIDTH) - 1,
    )
    pose = peer.load("models.PoseExpNet").PoseExpNet(nb_ref_imgs=2, output_exp=True)
    pose.init_weights()
    our_pose = models.PoseExpNet(explainability=True, padding="symmetric").double()
    our_pose.load_state_dict(our_pose.translate(pose.state_dict()))

    def theirs(frames: Tensor) -> list[Tensor]:
        masks, vectors = pose(frames[:, 0], list(frames[:, 1:].unbind(1)))
        return [vectors, *masks]

    def own(frames: Tensor) -> list[Tensor]:
        vectors, masks = our_pose(frames / 2 + 0.5)
        return [vectors, *(one.sigmoid() for one in masks)]

    parameters = dict(pose.named_parameters())
    frames = 2 * images(2, 3, 3, HEIGHT, WIDTH) - 1
    yield network("PoseExpNet", theirs, parameters, our_pose, own, our_pose.translate, frames)

    functions = peer.load("loss_functions")
    batch, count = 2, 2
    target, sources, K = images(batch, 3, HEIGHT, WIDTH), images(batch, count, 3, HEIGHT, WIDTH), camera(batch)
    sigmoids, vectors = maps(batch), (0.03 * torch.randn(batch, count, 6)).requires_grad_()
    masks = [logits(batch, count, *one.shape[2:]) for one in sigmoids]
    leaves = [*sigmoids, vectors, *masks]

    def their_loss() -> Tensors:
        depth = [1 / (SPAN * one + LOW) for one in sigmoids]
        weights = [one.sigmoid() for one in masks]
        total = 0.2 * functions.explainability_loss(weights) + 0.1 * functions.smooth_loss(depth)
        for s in SCALES:
            scaled = scale_intrinsics(K, 0.5**s, 0.5**s)
            scaled[:, :2] = scaled[:, :2] * 2**s  # which it divides again
            photometric = functions.photometric_reconstruction_loss(
                2 * target - 1, list((2 * sources - 1).unbind(1)), scaled, [depth[s]], [weights[s]], vectors
            )
            total = total + photometric[0]
        return with_gradients([total], leaves)

    loss = losses.SfMLearnerLoss(
        padding="masked", smooth="depth", smoothness=0.1, smoothness_decay=2.3, explainability=0.2 / count
    )
    yield Comparison(
        "loss with explainability",
        their_loss,
        lambda: with_gradients([loss(sigmoids, target, sources, K, pose_matrix_from_vector(vectors), masks)], leaves),
    )
    truth = 1 + 40 * torch.rand(1, HEIGHT, WIDTH)  # so far below the cap of 80 that nothing is clipped
    truth[0, HEIGHT // 2, WIDTH // 2 : WIDTH // 2 + 2] = 0  # of an odd number: the median of an even one differs
    prediction = 0.1 * truth.clamp(min=1) * torch.exp(0.1 * torch.randn_like(truth))

    def own_metrics() -> list[float]:
        found = Evaluator(Protocol("parity", alignment="median", crop="garg")).update(prediction[0], truth[0])
        return [found[name] for name in ("abs_rel", "sq_rel", "d1", "d2", "d3")]

    compute = next(
        getattr(functions, name) for name in ("compute_errors", "compute_depth_errors") if hasattr(functions, name)
    )
    yield metrics("metrics, median-aligned", lambda: compute(truth, prediction)[1:], own_metrics)


# --------------------------------------------------------------------------------------------- SfMLearner, vid2depth


def planes(x: Tensor) -> Tensor:
    """(B, H, W, C) to (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def flat(x: Tensor) -> Tensor:
    """(B, C, H, W) to TensorFlow's (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def tensorflow_network(
    what: str,
    tf: parity_stand_ins.TensorFlow,
    theirs: Callable[..., Sequence[Tensor]],
    ours: Any,
    call: Callable[..., Sequence[Tensor]],
    x: Tensor,
) -> Comparison:
    """As `network`; the variables are those that a first call creates."""
    before = set(tf.variables)
    with torch.no_grad():
        theirs(x)
    variables = {name: value for name, value in tf.variables.items() if name not in before}
    trained = {name: value for name, value in variables.items() if "/moving_" not in name}
    ours.load_state_dict(
        {key: value for key, value in ours.state_dict().items() if key.endswith("num_batches_tracked")}
        | {key: value.detach() for key, value in ours.translate(variables).items()}
    )
    return network(what, theirs, trained, ours, call, ours.translate, x)


def sfmlearner(peer: Peer) -> Iterator[Comparison]:
    tf = peer.tensorflow()
    peer.inert("data_loader", "matplotlib", "matplotlib.pyplot")
    nets = peer.load("nets")
    ours = models.DispNet().double()
    yield tensorflow_network(
        "depth network",
        tf,
        lambda x: [planes(one) for one in nets.disp_net(flat(2 * x - 1))[0]],
        ours,
        lambda x: [SPAN * one + LOW for one in ours(x)],
        images(2, 3, HEIGHT, WIDTH),
    )
    pose = models.PoseExpNet(explainability=True).double()

    def theirs(frames: Tensor) -> list[Tensor]:
        stacked = flat(2 * frames.flatten(1, 2) - 1)
        vectors, pairs, _ = nets.pose_exp_net(stacked[..., :3], stacked[..., 3:])
        return [vectors, *(planes(one.unflatten(3, (2, 2)).softmax(-1)[..., 1]) for one in pairs)]

    def own(frames: Tensor) -> list[Tensor]:
        vectors, masks = pose(frames)
        return [vectors, *(one.sigmoid() for one in masks)]

    frames = images(2, 3, 3, HEIGHT, WIDTH)
    yield tensorflow_network("pose and explainability network", tf, theirs, pose, own, frames)

    program = peer.load("SfMLearner")
    batch, count = 2, 2
    target, sources, K = images(batch, 3, HEIGHT, WIDTH), images(batch, count, 3, HEIGHT, WIDTH), camera(batch)
    sigmoids, vectors = maps(batch), (0.03 * torch.randn(batch, count, 6)).requires_grad_()
    masks = [logits(batch, count, *one.shape[2:]) for one in sigmoids]
    scaled = torch.stack([scale_intrinsics(K, 0.5**s, 0.5**s) for s in SCALES], 1)
    divided = torch.stack([torch.cat([K[:, :2] / 2**s, K[:, 2:]], 1) for s in SCALES], 1)

    def loss(weight: float, what: str, intrinsics: Tensor, known: str = "") -> Comparison:
        leaves = [*sigmoids, vectors, *(masks if weight else [])]

        def theirs() -> Tensors:
            batch_of = SimpleNamespace(
                load_train_batch=lambda: (flat(target), flat(sources.flatten(1, 2)), intrinsics), steps_per_epoch=1
            )
            program.DataLoader = lambda *sizes: batch_of
            program.disp_net = lambda *x, **options: ([flat(SPAN * one + LOW) for one in sigmoids], {})
            # The second of a pair of logits says "explained".
            pairs = [flat(torch.stack([torch.zeros_like(one), one], 2).flatten(1, 2)) for one in masks]
            program.pose_exp_net = lambda *x, **options: (vectors, pairs, {})
            it = program.SfMLearner()
            it.opt = SimpleNamespace(
                dataset_dir="",
                batch_size=batch,
                img_height=HEIGHT,
                img_width=WIDTH,
                num_source=count,
                num_scales=len(SCALES),
                explain_reg_weight=weight,
                smooth_weight=0.5,
                learning_rate=0.0002,
                beta1=0.9,
            )
            it.build_train_graph()
            return with_gradients([it.total_loss], leaves)

        own = losses.SfMLearnerLoss(explainability=weight)
        T = pose_matrix_from_vector(vectors)
        given = masks if weight else None
        return Comparison(
            what,
            theirs,
            lambda: with_gradients([own(sigmoids, target, sources, K, T, given)], leaves),
            known,
        )

    yield loss(0.0, "loss without explainability", scaled)
    yield loss(0.2, "loss with explainability", scaled)
    yield loss(0.0, "loss with the peer's intrinsics of the smaller scales", divided, _CENTRES)


def vid2depth(peer: Peer) -> Iterator[Comparison]:
    tf = peer.tensorflow()
    peer.inert("ops", "ops.icp_grad", "ops.icp_op", "reader")
    try:
        from absl import flags
    except ImportError as error:
        raise CannotImport(f"nets cannot be imported: {error}") from error
    nets = peer.load("nets")
    flags.FLAGS(["parity"])
    # Large enough for several values per channel at every level, from which batch norm takes its statistics.
    height, width, batch = 128, 256, 3
    for training in (True, False):
        mode = "statistics of the batch" if training else "running statistics"
        ours = models.Vid2DepthDispNet(batch_statistics=training).double().eval()
        tf.variables.clear()
        yield tensorflow_network(
            f"depth network, {mode}",
            tf,
            lambda x, on=training: [planes(one) for one in nets.disp_net(flat(x), is_training=on)[0]],
            ours,
            lambda x, net=ours: [SPAN * one + LOW for one in net(x)],
            images(batch, 3, height, width),
        )
        pose = models.Vid2DepthPoseNet(batch_statistics=training).double().eval()
        yield tensorflow_network(
            f"ego-motion network, {mode}",
            tf,
            lambda x, on=training: [nets.egomotion_net(flat(x.flatten(1, 2)), is_training=on)[0]],
            pose,
            lambda x, net=pose: [net(x)[0]],
            images(batch, 3, 3, height, width),
        )

    module = peer.load("model")
    count = 3
    frames, K = images(2, count, 3, HEIGHT, WIDTH), camera(2)
    sigmoids = [one.detach().unflatten(0, (2, count)).requires_grad_() for one in maps(2 * count)]
    vectors = (0.03 * torch.randn(2, count - 1, 6)).requires_grad_()

    scaled = torch.stack([scale_intrinsics(K, 0.5**s, 0.5**s) for s in SCALES], 1)
    divided = torch.stack([torch.cat([K[:, :2] / 2**s, K[:, 2:]], 1) for s in SCALES], 1)

    def theirs(intrinsics: Tensor) -> Tensors:
        it = object.__new__(module.Model)
        it.seq_length, it.img_height, it.img_width, it.legacy_mode = count, HEIGHT, WIDTH, False
        it.reconstr_weight, it.ssim_weight, it.smooth_weight, it.icp_weight = 0.85, 0.15, 0.05, 0.0
        it.image_stack, it.egomotion = flat(frames.flatten(1, 2)), vectors
        it.disp = {n: [flat(SPAN * one[:, n] + LOW) for one in sigmoids] for n in range(count)}
        it.depth = {n: [1 / one for one in it.disp[n]] for n in range(count)}
        it.intrinsic_mat, it.intrinsic_mat_inv = intrinsics, intrinsics.inverse()
        it.build_loss()
        return with_gradients([it.total_loss], [*sigmoids, vectors])

    own = losses.Vid2DepthLoss(icp=0.0)
    for what, intrinsics, known in (
        ("loss without the 3D term", scaled, ""),
        ("loss with the peer's intrinsics of the smaller scales", divided, _CENTRES),
    ):
        yield Comparison(
            what,
            lambda one=intrinsics: theirs(one),
            lambda: with_gradients([own(sigmoids, frames, K, pair_transforms(vectors))], [*sigmoids, vectors]),
            known,
        )


# -------------------------------------------------------------------------------------------------------- Monodepth


def monodepth(peer: Peer) -> Iterator[Comparison]:
    tf = peer.tensorflow()
    module = peer.load("monodepth_model")

    def built(x: Tensor, encoder: str) -> list[Tensor]:
        it = object.__new__(module.MonodepthModel)
        it.params = SimpleNamespace(encoder=encoder, use_deconv=False, do_stereo=False)
        it.mode, it.reuse_variables, it.left, it.right = "test", None, flat(x), None
        it.build_model()
        return [planes(one) for one in (it.disp1, it.disp2, it.disp3, it.disp4)]

    vgg = models.MonodepthVGG().double()
    x = images(2, 3, 128, 256)
    yield tensorflow_network("VGG network", tf, lambda one: built(one, "vgg"), vgg, lambda one: vgg(one), x)

    left, right = images(2, 3, HEIGHT, WIDTH), images(2, 3, HEIGHT, WIDTH)
    leaving, staying = maps(2, 2, low=0.01, high=0.06), []
    for one in leaving:
        # At the side at which points would leave the image they go the other way, by less than a pixel.
        width = one.shape[3]
        ramp = (8 * torch.arange(width) / width).clamp(max=1)
        ramp = torch.stack([ramp, ramp.flip(0)])[:, None]
        staying.append((one.detach() * ramp - 0.3 / width * (1 - ramp)).requires_grad_())
    weight = 0.1

    def theirs(disparities: list[Tensor], vertical: bool) -> Tensors:
        it = object.__new__(module.MonodepthModel)
        it.params = SimpleNamespace(alpha_image_loss=0.85, disp_gradient_loss_weight=weight, lr_loss_weight=1.0)
        it.mode, it.reuse_variables = "train", None
        it.left_pyramid, it.right_pyramid = it.scale_pyramid(flat(left), 4), it.scale_pyramid(flat(right), 4)
        it.disp1, it.disp2, it.disp3, it.disp4 = (flat(one) for one in disparities)
        it.build_outputs()
        it.build_losses()
        total = it.total_loss
        if vertical:
            # The second half of what get_disparity_smoothness returns, which build_losses does not read.
            for both in (it.disp_left_smoothness, it.disp_right_smoothness):
                total = total + weight * sum(both[4 + s].abs().mean() / 2**s for s in SCALES)
        return with_gradients([total], disparities)

    loss = losses.LeftRightLoss(smoothness=weight)
    for what, disparities, vertical, known in (
        ("loss, smoothness along x and y", staying, True, ""),
        ("loss as released", staying, False, "the paper's smoothness is along x and y, the released program's along x"),
        ("loss, points outside of the image", leaving, True, "outside of the image we read its border, the peer 0"),
    ):
        yield Comparison(
            what,
            lambda one=disparities, on=vertical: theirs(one, on),
            lambda one=disparities: with_gradients([loss(one, left, right)], one),
            known,
        )


# ---------------------------------------------------------------------------------------------------- unsupFlownet


def unsupflownet(peer: Peer) -> Iterator[Comparison]:
    tf = peer.tensorflow()
    # Of the package `components` only what is used here: it is Python 2, whose modules import their neighbours.
    peer.inert("components")
    components: Any = sys.modules["components"]
    components.__all__ = ["charbonnierLoss", "flowWarp", "borderOcclusionMask"]
    components.__all__ += ["convLayer", "convLayerRelu", "deconvLayerRelu", "flowRefinementConcat"]
    for name in components.__all__:
        setattr(components, name, getattr(peer.load(name, "src/components"), name))
    body = peer.load("NetworkBody", "src/util").NetworkBody
    net = models.FlowNetS().double()

    def built(pair: Tensor) -> list[Tensor]:
        frames = [{"rgb": flat(one - one.new_tensor(net.rgb_mean).view(1, 3, 1, 1))} for one in pair.unbind(1)]
        with tf.variable_scope("netShare"):
            data = SimpleNamespace(frame0=frames[0], frame1=frames[1])
            return [planes(body(data, {"resnet": False, "flowScale": net.scale}).flow0)]

    yield tensorflow_network("FlowNetS", tf, built, net, lambda pair: [net(*pair.unbind(1))], images(1, 2, 3, 64, 128))
    photo = peer.load("photoLoss", "src/util/lossComponents").photoLoss
    smooth = peer.load("asymmetricSmoothLoss", "src/util/lossComponents").asymmetricSmoothLoss
    first, second = images(2, 3, HEIGHT, WIDTH), images(2, 3, HEIGHT, WIDTH)
    flow = (8 * (images(2, 2, HEIGHT, WIDTH) - 0.5)).requires_grad_()
    weight, share = 0.64, 0.1
    counted = flat(border_mask(flow, share).double())
    names = ("smoothParams", 0.28, 3.5), ("smoothOccParams", 0.9, 1.8)
    parameters = {name: {"robustness": alpha, "scale": scale} for name, alpha, scale in names}

    def theirs() -> Tensors:
        inside = components.borderOcclusionMask(flat(flow))
        error = photo(flat(flow), flat(first), flat(second), 0.53, 360.0) * inside * counted
        rough = smooth(flat(flow), parameters, inside, counted)
        return with_gradients([error.mean() + weight * rough.mean()], [flow])

    loss = losses.FlowLoss(
        weight,
        alpha=0.53,
        scale=360.0,
        smooth_alpha=0.28,
        smooth_scale=3.5,
        form="joint",
        outside_alpha=0.9,
        outside_scale=1.8,
        border=share,
    )
    yield Comparison(
        "loss, joint and asymmetric", theirs, lambda: with_gradients([loss(flow, first, second)[0]], [flow])
    )


# -------------------------------------------------------------------------------------------------------- FastDepth

DECODERS = ("nnconv5dw", "nnconv5", "nnconv3dw", "blconv5dw", "shuffle5dw", "deconv5dw", "upconv", "upproj")


def fastdepth(peer: Peer) -> Iterator[Comparison]:
    peer.torchvision()
    module = peer.load("models")
    nets = [
        ("MobileNetSkipAdd", lambda: module.MobileNetSkipAdd((224, 224), pretrained=False), {}),
        ("MobileNetSkipConcat", lambda: module.MobileNetSkipConcat((224, 224), pretrained=False), {"skip": "concat"}),
    ]
    for decoder in DECODERS:
        make = lambda name=decoder: module.MobileNet(name, (224, 224), pretrained=False)  # noqa: E731
        nets.append((f"MobileNet, decoder {decoder}", make, {"skip": "none", "decoder": decoder}))
    for what, make, options in nets:
        net, ours = make(), models.FastDepth(**options).double()
        settle(net, images(4, 3, HEIGHT, WIDTH))
        translate = _fastdepth_names(ours, net)
        ours.load_state_dict(translate(net.state_dict()))
        net.eval(), ours.eval()
        yield network(
            what,
            lambda x, one=net: [one(x)],
            dict(net.named_parameters()),
            ours,
            lambda x, one=ours: [one(x)],
            translate,
            images(2, 3, HEIGHT, WIDTH),
        )
    truth, prediction = depths()
    result = peer.load("metrics").Result()

    def theirs() -> list[float]:
        result.evaluate(torch.from_numpy(prediction), torch.from_numpy(truth))
        return [
            *(result.absrel, result.rmse, result.lg10, result.delta1, result.delta2, result.delta3),
            1000 * result.irmse,  # per km
        ]

    own = depth_metrics(prediction, truth)
    names = ("abs_rel", "rmse", "log10", "d1", "d2", "d3", "irmse")
    yield metrics("metrics", theirs, lambda: [own[name] for name in names])


def _fastdepth_names(ours: models.FastDepth, net: nn.Module) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """By name where the published files are read, else by order, in which both have the same layers."""
    theirs, own = list(net.state_dict()), list(ours.state_dict())
    translated = list(ours.translate({name: name for name in theirs}))
    names = dict(zip(theirs, translated if set(translated) == set(own) else own, strict=True))
    return lambda state: {names[name]: value for name, value in state.items()}


# -------------------------------------------------------------------------------------------------------------- BTS


def bts(peer: Peer) -> Iterator[Comparison]:
    peer.inert("cv2")
    silog = peer.load("bts", "pytorch").silog_loss(0.85)
    truth = 1 + 60 * torch.rand(2, 1, HEIGHT, WIDTH)
    output = (truth * torch.exp(0.3 * torch.randn_like(truth))).requires_grad_()
    valid = torch.rand_like(truth) < 0.3
    yield Comparison(
        "silog loss",
        lambda: with_gradients([silog(output, truth, valid)], [output]),
        lambda: with_gradients([losses.SILogLoss.bts()(output, truth, valid)], [output]),
    )
    evaluate = peer.load("eval_with_pngs", "utils", ["--pred_path", "none"])
    g, p = depths()
    own = depth_metrics(p, g)
    names = ("silog", "log10", "abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")
    yield metrics("metrics", lambda: evaluate.compute_errors(g, p), lambda: [own[name] for name in names])


class PeerSpec(NamedTuple):
    """folder: below that of the clones. adapter: None if there is no comparison. terms: why, or on what terms."""

    folder: str
    adapter: Callable[[Peer], Iterator[Comparison]] | None
    terms: str


_PIXELS = "It gets our intrinsics of the smaller scales, which keep pixel centres on integers, unless stated otherwise."

PEERS: dict[str, PeerSpec] = {
    "monodepth2": PeerSpec(
        "monodepth2",
        monodepth2,
        "The loss is Trainer's `generate_images_pred` and `compute_losses`, without the random numbers that break "
        "ties. Its projection divides by z + 1e-7, which moves some points into the next pixel, where the gradient is "
        f"another: gradients are compared with `Project3D(eps=0)`. {_PIXELS}",
    ),
    "SfmLearner-Pytorch": PeerSpec("SfmLearner-Pytorch", sfmlearner_pytorch, _PIXELS),
    "SfMLearner": PeerSpec("SfMLearner", sfmlearner, f"The loss is that of `build_train_graph`. {_PIXELS}"),
    "vid2depth": PeerSpec(
        "models/research/vid2depth",
        vid2depth,
        f"The loss is Model's `build_loss` without the 3D term, whose ICP is a native op. {_PIXELS}",
    ),
    "monodepth": PeerSpec(
        "monodepth",
        monodepth,
        "The loss is that of `build_losses`. The ResNet-50 network is not compared, as no key map reads its weights.",
    ),
    "fast-depth": PeerSpec("fast-depth", fastdepth, "Networks in eval mode."),
    "bts": PeerSpec("bts", bts, "Loss and metrics only: the network is not one of ours."),
    "FCRN-DepthPrediction": PeerSpec(
        "FCRN-DepthPrediction", None, "no comparison yet: its network is built by TensorFlow 1 from a weight file"
    ),
    "DPT": PeerSpec("DPT", None, "no comparison yet: it needs the package timm"),
    "unsupFlownet": PeerSpec(
        "unsupFlownet",
        unsupflownet,
        "The terms of the loss are combined as in `unsupFlowLoss`, on images without local response normalisation.",
    ),
}
