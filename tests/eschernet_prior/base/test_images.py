"""Pictures are read as they are shown, masks as nerfstudio means them, and everything else is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.images import check_picture, picture_info, read_image, read_mask, read_pixels

HEIGHT, WIDTH = 10, 16


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A smooth picture, so that lossy formats keep it, without any symmetry."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
    return Image.fromarray((255 * np.stack([rows, columns, 1 - rows * columns], -1)).astype(np.uint8))


def off(path: Path, expected: Image.Image) -> int:
    """The largest difference to what is shown, in shades of 255."""
    return int(np.abs(read_pixels(path).astype(int) - np.asarray(expected).astype(int)).max())


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_by_its_orientation(tmp_path, photo, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    photo.save(path, exif=exif, **({"quality": 100} if suffix in ("jpg", "webp") else {}))
    stored = photo.copy()
    stored.getexif()[0x0112] = orientation
    shown = ImageOps.exif_transpose(stored)
    assert picture_info(path).size == shown.size
    assert off(path, shown) <= (0 if suffix in ("png", "tif") else 40), "as shown, or nearly"


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path, photo):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(path, exif=exif)
    whole = path.read_bytes()
    start = whole.index(b"eXIf") - 4
    length = 12 + int.from_bytes(whole[start : start + 4], "big")
    chunk, end = whole[start : start + length], whole.index(b"IEND") - 4
    path.write_bytes(whole[:start] + whole[start + length : end] + chunk + whole[end:])
    assert picture_info(path).size == (HEIGHT, WIDTH) == read_pixels(path).shape[1::-1]


def test_pixel_formats_are_read_as_they_are_shown(tmp_path, photo):
    palette = photo.quantize(16)
    palette.save(tmp_path / "palette.png")
    assert off(tmp_path / "palette.png", palette.convert("RGB")) == 0
    shades = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 400
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(shades).save(tmp_path / name)
        assert np.abs(read_pixels(tmp_path / name)[..., 1] - shades / 257).max() <= 0.5
    photo.convert("CMYK").save(tmp_path / "inks.jpg", quality=100)
    assert off(tmp_path / "inks.jpg", photo) < 12
    photo.convert("1").save(tmp_path / "bits.png")
    assert off(tmp_path / "bits.png", photo.convert("1").convert("RGB")) == 0
    photo.convert("YCbCr").save(tmp_path / "video.tif")
    assert off(tmp_path / "video.tif", photo) < 4


def test_alpha_counts_only_where_it_says_something(tmp_path, photo):
    grey = photo.convert("LA")
    grey.save(tmp_path / "opaque.png")
    assert read_pixels(tmp_path / "opaque.png").shape == (HEIGHT, WIDTH, 3)
    grey.putalpha(Image.fromarray(np.tile(np.arange(WIDTH, dtype=np.uint8) * 17, (HEIGHT, 1))))
    grey.save(tmp_path / "grey.png")
    pixels = read_pixels(tmp_path / "grey.png")
    assert (pixels[0, :, 3] == np.arange(WIDTH) * 17).all()
    assert (pixels[..., :3] == np.asarray(photo.convert("L"))[..., None]).all()
    palette = photo.quantize(8)
    palette.save(tmp_path / "key.png", transparency=palette.getpixel((3, 3)))
    assert read_pixels(tmp_path / "key.png")[3, 3, 3] == 0
    assert torch.equal(read_image(tmp_path / "key.png")[:, 3, 3], torch.ones(3)), "what is transparent is white"


def test_colours_of_a_profile_are_brought_to_srgb(tmp_path, photo):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.save(tmp_path / "srgb.png", icc_profile=srgb)
    assert off(tmp_path / "srgb.png", photo) == 0
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, profile in (("other.png", lab), ("damaged.png", b"no profile")):
        photo.save(tmp_path / name, icc_profile=profile)
        assert off(tmp_path / name, photo) == 0, "a profile that does not fit is ignored"
    # The same profile with red and blue exchanged: a space whose first channel shows blue.
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    photo.save(tmp_path / "swapped.png", icc_profile=swapped)
    assert off(tmp_path / "swapped.png", Image.fromarray(np.asarray(photo)[..., ::-1])) < 40


def test_heic_is_read(tmp_path, photo):
    pytest.importorskip("pillow_heif").register_heif_opener()
    photo.resize((64, 40)).save(tmp_path / "a.HEIC", format="HEIF", quality=95)
    assert check_picture(tmp_path / "a.HEIC").size == (64, 40)
    assert off(tmp_path / "a.HEIC", photo.resize((64, 40))) < 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_whole_picture_passes_whatever_its_suffix(tmp_path, photo, kind):
    photo.save(tmp_path / "A.PNG", kind)
    assert check_picture(tmp_path / "A.PNG").size == (WIDTH, HEIGHT)


def broken_png(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


FAULTS = {
    "missing": (lambda p, _: p, "There is no picture"),
    "empty": (lambda p, _: p.write_bytes(b""), "is empty"),
    "text": (lambda p, _: p.write_text("no picture"), "cannot be read as a picture"),
    "cut off": (lambda p, im: (im.save(p), p.write_bytes(p.read_bytes()[:-30])), "cannot be read as a picture"),
    "cut off JPEG": (
        lambda p, im: (im.resize((320, 200)).save(p, "JPEG"), p.write_bytes(p.read_bytes()[:900])),
        "cannot be read as a picture",
    ),
    "damaged inside": (lambda p, im: (im.save(p), broken_png(p)), "cannot be read as a picture"),
    "animation": (lambda p, im: im.save(p, "GIF", save_all=True, append_images=[im.rotate(90)]), "contains 2 pictures"),
    "pages": (lambda p, im: im.save(p, "TIFF", save_all=True, append_images=[im.rotate(90)]), "contains 2 pictures"),
    "floating point": (lambda p, im: im.convert("F").save(p, "TIFF"), "pixels of type F"),
    "32 bits": (lambda p, im: im.convert("I").save(p, "TIFF"), "pixels of type I"),
    "icon": (lambda p, im: im.save(p, "ICO"), "format ICO"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_rightly_is_refused_by_name(tmp_path, photo, fault):
    make, words = FAULTS[fault]
    path = tmp_path / "a.png"
    make(path, photo)
    for read in (check_picture, read_pixels, read_mask):
        if fault == "32 bits" and read is read_mask:
            continue
        with pytest.raises(UserError, match=rf"^[^\n]*a\.png[^\n]*{words}[^\n]*\.$|^{words}[^\n]*a\.png[^\n]*\.$"):
            read(path)


@pytest.mark.parametrize(("name", "words"), [("a.exr", "dynamic range"), ("a.HDR", "dynamic range"), ("a.DNG", "raw")])
def test_kinds_that_need_developing_are_refused_by_suffix(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(UserError, match=f"{name}.*{words}"):
        check_picture(tmp_path / name)


def mask_files() -> dict[str, Image.Image]:
    """One mask in many pixel formats."""
    inside = np.zeros((HEIGHT, WIDTH), np.uint8)
    inside[2:5, 3:9] = 1
    palette, white_first = Image.fromarray(inside).convert("P"), Image.fromarray(1 - inside).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    white_shape = Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 0))
    white_shape.putalpha(Image.fromarray(inside * 255))
    return {
        "zero_one": Image.fromarray(inside),
        "zero_255": Image.fromarray(inside * 255),
        "label_3": Image.fromarray(inside * 3),
        "dark_red_palette": palette,
        "white_first_palette": white_first,
        "three_channels": Image.fromarray(np.stack([inside * 255] * 3, -1)),
        "red_channel": Image.fromarray(np.stack([inside * 128, 0 * inside, 0 * inside], -1)),
        "bits": Image.fromarray(inside > 0),
        "sixteen_bits": Image.fromarray(inside.astype(np.uint16)),
        "grey_with_alpha": Image.merge("LA", [Image.fromarray(inside * 255), Image.new("L", (WIDTH, HEIGHT), 255)]),
        "shape_in_alpha": white_shape,
    }


@pytest.mark.parametrize("name", mask_files())
def test_masks_of_any_pixel_format_say_the_same(tmp_path, name):
    mask_files()[name].save(tmp_path / "mask.png")
    read = read_mask(tmp_path / "mask.png")
    assert read.dtype == torch.bool
    assert read.shape == (HEIGHT, WIDTH)
    assert int(read.sum()) == 18
    assert bool(read[2:5, 3:9].all())


def test_noise_around_black_is_black(tmp_path):
    shades = np.zeros((32, 32), np.uint8)
    shades[:, 16:] = 250
    shades[0, 0] = 9
    Image.fromarray(shades).save(tmp_path / "a.png")
    Image.fromarray(shades).save(tmp_path / "a.jpg", quality=60)
    for name in ("a.png", "a.jpg"):
        assert torch.equal(read_mask(tmp_path / name), torch.from_numpy(shades > 16)), name


@pytest.mark.parametrize("label", [1, 9])
def test_a_dark_label_beside_white_is_inside(tmp_path, label):
    """As data sets have it that mark an object by 1 and its doubtful rim by 255."""
    shades = np.zeros((32, 32), np.uint8)
    shades[8:20, 8:20] = 255
    shades[9:19, 9:19] = label
    Image.fromarray(shades).save(tmp_path / "a.png")
    assert torch.equal(read_mask(tmp_path / "a.png"), torch.from_numpy(shades > 0))
    video = np.where(shades > 0, np.uint8(235), np.uint8(16))
    Image.fromarray(video).save(tmp_path / "b.png")
    assert torch.equal(read_mask(tmp_path / "b.png"), torch.from_numpy(shades > 0)), "black level of video"


def test_a_cut_out_photo_is_no_mask(tmp_path, photo):
    photo.putalpha(Image.fromarray(np.tile(np.arange(WIDTH, dtype=np.uint8) * 17, (HEIGHT, 1))))
    photo.save(tmp_path / "a.png")
    with pytest.raises(UserError, match="both colours and transparency"):
        read_mask(tmp_path / "a.png")
