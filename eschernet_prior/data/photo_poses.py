"""Find the poses of photos with COLMAP (pycolmap): SIFT features, pairs, matches, incremental mapping, adjustment.

COLMAP stores its results in a database, photo by photo and pair by pair, from which an interrupted search resumes.

Vocabulary
    lens     photos of one size, camera and focal length share one set of intrinsics
    model    COLMAP's reconstruction: cameras, poses (world to camera, OpenCV axes) and points
    placed   a photo that has a pose
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from nerfstudio.utils.rich_utils import get_progress
from scipy.cluster.vq import kmeans2

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path

if TYPE_CHECKING:
    import pycolmap

    from eschernet_prior.data.photo_pictures import Picture

Lens = Literal["perspective", "fisheye"]
ALL_PAIRS = 60
"""Largest number of photos for which all pairs are compared."""
NEIGHBOURS = 4
"""With more photos: number of following photos, by name, that each is compared with; twice as many for a video."""
SIMILAR = 16
"""With more photos: number of most similar photos that each is compared with; half as many for a video."""
WORDS, WORD_SAMPLES = 64, 30_000
"""Number of clusters of descriptors by which photos are compared, and of the descriptors that are clustered."""
MAX_FEATURES = 8192
LARGE = 1000
"""Length of the longer side in pixels from which the finest features, which are noise there, are omitted."""
MANY = 15
"""Number of photos per lens from which its tangential distortion and principal point are estimated."""
MAX_SHIFT = 0.1
"""Largest credible distance of a principal point from the middle, as a fraction of the size."""
POLL_SECONDS = 0.5
"""Seconds between two queries of COLMAP's progress."""
PAIRS_A_BLOCK = 16
"""Number of pairs whose matches COLMAP writes at a time."""
MIN_PLACED = 3
NAMED = 12
"""Largest number of photos listed in a message."""


def find_poses(pictures: Sequence[Picture], folder: Path, lens: Lens, video: bool) -> pycolmap.Reconstruction:
    """Find the cameras of pictures.

    Args:
        pictures: The pictures in `folder / "images"`, ordered by time or name.
        folder: Folder of the pictures and of COLMAP's database.
        lens: Perspective, or fisheye for about 120 degrees and more.
        video: Whether the pictures are frames of a video.

    Returns:
        The model with the most pictures, in an arbitrary frame and scale.

    Raises:
        UserError: If fewer than half of the pictures, or fewer than three, can be placed.
    """
    with _quiet():
        database = folder / "database.db"
        cameras = _write_cameras(database, pictures, lens)
        _extract(database, folder, pictures, cameras)
        names = [picture.name for picture in pictures]
        alike = _signatures(database, names) if len(pictures) > ALL_PAIRS else None
        _match(database, folder, choose_pairs(len(pictures), video, alike), names)
        model = _map(database, folder, len(pictures))
        placed = 0 if model is None else model.num_reg_images()
        if model is None or placed < max(MIN_PLACED, (len(pictures) + 1) // 2):
            raise UserError(_advice(pictures, [] if model is None else placed_names(model)))
        return _adjusted(model)


def placed_names(model: pycolmap.Reconstruction) -> list[str]:
    """List the names of the pictures that have a pose, sorted."""
    return sorted(model.image(image).name for image in model.reg_image_ids())


def name_some(names: Sequence[str]) -> str:
    """Format a list of names for a message, at most `NAMED` of them."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _advice(pictures: Sequence[Picture], placed: Sequence[str]) -> str:
    lost = [picture.source for picture in pictures if picture.name not in set(placed)]
    return (
        f"Only {len(placed)} of {len(pictures)} photos could be placed (not {name_some(lost)}): take sharp photos of "
        "a textured, motionless scene while walking around it, each overlapping the previous one by about two thirds; "
        "photos taken from one position contain no depth."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress COLMAP's messages to stderr inside the block; its failures are exceptions."""
    import pycolmap

    if threading.current_thread() is threading.main_thread():
        # When it is loaded, its logger installs a handler that prints a stack trace when the process is terminated.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    logging: Any = pycolmap.logging
    before = logging.minloglevel
    logging.minloglevel = int(logging.FATAL)
    try:
        yield
    finally:
        logging.minloglevel = before


def lens_groups(pictures: Sequence[Picture]) -> list[list[int]]:
    """Group pictures that share a lens: the same size and the same camera, lens and focal length in the EXIF data."""
    groups: dict[tuple[int, int, str], list[int]] = {}
    for index, picture in enumerate(pictures):
        groups.setdefault((picture.width, picture.height, picture.lens), []).append(index)
    return list(groups.values())


def _write_cameras(database: Path, pictures: Sequence[Picture], lens: Lens) -> list[int]:
    """Write one camera per lens into the database, unless they exist; return the camera id of each picture.

    If the EXIF data contain no focal length, the initial value is 1.2 times the longer side, COLMAP's own default.
    """
    import pycolmap

    ids = [0] * len(pictures)
    with pycolmap.Database.open(database) as content:
        for number, group in enumerate(lens_groups(pictures), 1):
            first = pictures[group[0]]
            known = first.focal is not None
            focal = first.focal if known else 1.2 * max(first.width, first.height)
            kind = "OPENCV_FISHEYE" if lens == "fisheye" else "OPENCV" if len(group) >= MANY else "SIMPLE_RADIAL"
            focals = [focal] if kind == "SIMPLE_RADIAL" else [focal, focal]
            rest = [0.0] * (1 if kind == "SIMPLE_RADIAL" else 4)
            params = [*focals, first.width / 2, first.height / 2, *rest]
            if not content.exists_camera(number):
                camera = pycolmap.Camera(model=kind, width=first.width, height=first.height, params=params)
                camera.has_prior_focal_length = known
                content.write_camera(camera)
            for index in group:
                ids[index] = number
    return ids


def _extract(database: Path, folder: Path, pictures: Sequence[Picture], cameras: Sequence[int]) -> None:
    """Find SIFT features of all pictures that have none yet, only where they are opaque."""
    import pycolmap

    reader, options = pycolmap.ImageReaderOptions(), pycolmap.FeatureExtractionOptions()
    options.sift.max_num_features = MAX_FEATURES
    if any(picture.alpha for picture in pictures):
        reader.mask_path = _write_masks(folder, pictures)

    def work(token: pycolmap.CancellationToken) -> None:
        for group in lens_groups(pictures):
            reader.existing_camera_id = cameras[group[0]]
            options.sift.first_octave = 0 if _is_large(pictures[group[0]]) else -1
            pycolmap.extract_features(
                database,
                folder / "images",
                [pictures[index].name for index in group],
                camera_mode=pycolmap.CameraMode.SINGLE,
                reader_options=reader,
                extraction_options=options,
                cancellation_token=token,
            )

    def is_done(content: pycolmap.Database, index: int) -> bool:
        image = content.read_image_with_name(pictures[index].name)
        return image is not None and content.exists_descriptors(image.image_id)

    _watch(work, database, "Finding features", "photos", len(pictures), is_done)


def _watch(
    work: Callable[[pycolmap.CancellationToken], None],
    database: Path,
    title: str,
    unit: str,
    total: int,
    is_done: Callable[[pycolmap.Database, int], bool],
) -> None:
    """Run COLMAP in a thread and show its progress, read from its database; Ctrl-C cancels it.

    Args:
        work: Function that calls COLMAP.
        database: The database into which it writes.
        title: Title of the progress bar.
        unit: Name of the counted items.
        total: Number of items.
        is_done: Whether the database contains the result of an item; items are done approximately in order.
    """
    import pycolmap

    token, done = pycolmap.CancellationToken(), 0
    with (
        pycolmap.Database.open(database) as content,
        ThreadPoolExecutor(1) as pool,
        get_progress(title, suffix=unit) as progress,
    ):
        task = progress.add_task("", total=total)
        working = pool.submit(work, token)
        try:
            while not wait([working], POLL_SECONDS).done:
                while done < total and is_done(content, done):
                    done += 1
                progress.update(task, completed=done)
        finally:
            token.cancel()
        working.result()
        progress.update(task, completed=total)


def _is_large(picture: Picture) -> bool:
    return max(picture.width, picture.height) >= LARGE


def _write_masks(folder: Path, pictures: Sequence[Picture]) -> Path:
    """Write masks of the opaque parts of pictures for COLMAP: `masks/NAME.png`, black where features are excluded."""
    from PIL import Image

    from eschernet_prior.base.images import read_pixels

    masks = folder / "masks"
    for picture in pictures:
        path = masks / f"{picture.name}.png"
        if not path.is_file():
            pixels = read_pixels(folder / "images" / picture.name)
            opaque = pixels[..., 3] > 127 if picture.alpha else np.ones(pixels.shape[:2], bool)
            with atomic_path(path) as partial:
                Image.fromarray(opaque.astype(np.uint8) * 255).save(partial)
    return masks


def choose_pairs(
    count: int, video: bool, signatures: Float[np.ndarray, "pictures features"] | None = None
) -> list[tuple[int, int]]:
    """Choose the pairs of pictures to compare.

    Up to `ALL_PAIRS` pictures, all pairs are compared. Otherwise each picture is compared with those that follow it, in
    a video also with those 16, 32, … places later, and with the most similar ones, which closes loops.

    Args:
        count: Number of pictures.
        video: Whether the pictures are frames of a video.
        signatures: Unit vectors that are similar for similar pictures, see `_signatures`; required for more than
            `ALL_PAIRS` pictures.

    Returns:
        Pairs of indices, the lower one first, ordered so that consecutive pairs share pictures.
    """
    if count <= ALL_PAIRS:
        pairs = {(a, b) for a in range(count) for b in range(a + 1, count)}
    else:
        assert signatures is not None, "more pictures than can all be compared"
        neighbours, similar = (2 * NEIGHBOURS, SIMILAR // 2) if video else (NEIGHBOURS, SIMILAR)
        steps = [*range(1, neighbours + 1)]
        if video:
            steps += [step for step in (16, 32, 64) if step < count]
        pairs = {(a, a + step) for a in range(count) for step in steps if a + step < count}
        alike = signatures @ signatures.T
        np.fill_diagonal(alike, -np.inf)
        if video:
            for offset in range(1, neighbours + 1):  # neighbours are compared in any case
                for diagonal in (offset, -offset):
                    rows = np.arange(max(0, -diagonal), min(count, count - diagonal))
                    alike[rows, rows + diagonal] = -np.inf
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, :similar]
        pairs |= {
            (min(a, b), max(a, b)) for a, row in enumerate(nearest.tolist()) for b in row if np.isfinite(alike[a, b])
        }
    return sorted(pairs, key=lambda pair: (pair[0] // 8, pair[1] // 8, pair))


def _signatures(database: Path, names: Sequence[str]) -> Float[np.ndarray, "pictures features"]:
    """Compute vectors that represent the appearance of pictures, from their descriptors."""
    import pycolmap

    with pycolmap.Database.open(database) as content:
        ids = _image_ids(content, names)
        return describe([np.asarray(content.read_descriptors(number).data) for number in ids])


def _image_ids(content: pycolmap.Database, names: Sequence[str]) -> list[int]:
    ids = {image.name: image.image_id for image in content.read_all_images()}
    return [ids[name] for name in names]


def describe(descriptors: Sequence[UInt8[np.ndarray, "features 128"]]) -> Float[np.ndarray, "pictures features"]:
    """Compute a unit vector per picture: the sums of its descriptors' residuals to cluster centres.

    This is VLAD (Jégou et al., CVPR 2010) with centres from these pictures alone.

    Args:
        descriptors: Descriptors of each picture; a picture without any gives zeros.
    """
    rng = np.random.default_rng(0)
    share = max(1, WORD_SAMPLES // len(descriptors))
    samples = np.concatenate([d[rng.permutation(len(d))[:share]] for d in descriptors]).astype(np.float32)
    signatures = np.zeros((len(descriptors), WORDS, 128), np.float32)
    if len(samples) >= WORDS:
        words, _ = kmeans2(samples, samples[rng.choice(len(samples), WORDS, replace=False)], iter=8, minit="matrix")
        for signature, features in zip(signatures, descriptors):
            features = features.astype(np.float32)
            nearest = ((words**2).sum(1) - 2 * features @ words.T).argmin(1)
            np.add.at(signature, nearest, features - words[nearest])
    signatures /= np.linalg.norm(signatures, axis=2, keepdims=True) + 1e-9
    signatures = signatures.reshape(len(descriptors), -1)
    return signatures / (np.linalg.norm(signatures, axis=1, keepdims=True) + 1e-9)


def _match(database: Path, folder: Path, pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> None:
    """Match features of pairs that are not in the database yet, and keep matches consistent with a rigid scene."""
    import pycolmap

    verification, pairing = pycolmap.TwoViewGeometryOptions(), pycolmap.ImportedPairingOptions()
    verification.ransac.random_seed = 0
    pairing.block_size = PAIRS_A_BLOCK
    pairing.match_list_path = folder / "pairs.txt"
    pairing.match_list_path.write_text("".join(f"{names[a]} {names[b]}\n" for a, b in pairs), "utf8")

    def work(token: pycolmap.CancellationToken) -> None:
        pycolmap.match_image_pairs(
            database, pairing_options=pairing, verification_options=verification, cancellation_token=token
        )

    with pycolmap.Database.open(database) as content:
        ids = _image_ids(content, names)

    def is_done(content: pycolmap.Database, index: int) -> bool:
        first, second = pairs[index]
        return content.exists_two_view_geometry(ids[first], ids[second])

    _watch(work, database, "Matching pairs of photos", "pairs", len(pairs), is_done)


def _map(database: Path, folder: Path, count: int) -> pycolmap.Reconstruction | None:
    """Place one picture after the other; of several disconnected models, return the one with the most pictures."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = 0
    options.min_model_size = MIN_PLACED
    options.max_num_models = 8
    output = folder / "mapping"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    with get_progress("Placing the photos", suffix="photos") as progress:
        task = progress.add_task("", total=count)

        def another() -> None:
            if not progress.finished:
                progress.advance(task)

        # A second attempt, with another initial pair, starts over.
        def first_pair() -> None:
            progress.update(task, completed=2)

        models = pycolmap.incremental_mapping(
            database,
            folder / "images",
            output,
            options,
            initial_image_pair_callback=first_pair,
            next_image_callback=another,
        )
    shutil.rmtree(output)
    return max(models.values(), key=lambda model: model.num_reg_images()) if models else None


def _adjusted(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """Adjust the model once more, with free principal points for the lenses that have enough photos.

    In cropped or digitally stabilised photos the principal point is not in the middle; without this adjustment the
    poses would be rotated to compensate. If an estimate is not credible, the model is returned unchanged.
    """
    import pycolmap

    adjusted = pycolmap.Reconstruction(model)
    config, options = pycolmap.BundleAdjustmentConfig(), pycolmap.BundleAdjustmentOptions()
    options.refine_principal_point = True
    options.print_summary = False
    views: dict[int, int] = {}
    for image in adjusted.reg_image_ids():
        config.add_image(image)
        camera = adjusted.image(image).camera_id
        views[camera] = views.get(camera, 0) + 1
    if max(views.values()) < MANY:
        return model
    for camera, count in views.items():
        if count < MANY:
            config.set_constant_cam_intrinsics(camera)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    summary = pycolmap.create_default_bundle_adjuster(options, config, adjusted).solve()
    shifts = [
        max(abs(camera.principal_point_x / camera.width - 0.5), abs(camera.principal_point_y / camera.height - 0.5))
        for camera in adjusted.cameras.values()
    ]
    if not summary.is_solution_usable() or max(shifts) > MAX_SHIFT:
        return model
    adjusted.update_point_3d_errors()
    return adjusted
